// fewstep data pack|info|verify: look at a data set, prove that every sample of it can be read, pack it into one HDF5
// file.
#include <CLI/CLI.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <set>

#include "datasets/dataset.h"
#include "datasets/packed.h"
#include "datasets/size_summary.h"
#include "src/base/error.h"
#include "src/base/log.h"
#include "src/base/parallel.h"
#include "src/base/progress.h"
#include "src/base/text.h"
#include "src/tensor/ops.h"
#include "tools/commands.h"
#include "tools/data_cache_command.h"
#include "tools/data_source.h"
#include "tools/data_teacher_command.h"

namespace fewstep {

namespace {
namespace fs = std::filesystem;

void pack(const DataArguments& a) {
  const auto dataset = open_dataset(a);
  Progress progress("pack", dataset->size());
  pack_dataset(*dataset, a.out, [&](int64_t done) { progress.update(done); });
  progress.finish();
  fmt::print("{}: {} samples of {} in {}\n", a.out, dataset->size(), dataset->description(),
             human_bytes(fs::file_size(a.out)));
}

using Histogram = std::map<std::string, int64_t>;

void print_histogram(std::string_view title, const Histogram& counts, int64_t total) {
  fmt::print("{}\n", title);
  for (const auto& [name, count] : counts)
    fmt::print("  {:<24} {:>9}  {:5.1f} %\n", name, count,
               100.0 * static_cast<double>(count) / static_cast<double>(total));
}

struct Lengths {
  int64_t least = std::numeric_limits<int64_t>::max(), most = 0, sum = 0, empty = 0;
  void add(int64_t n) { least = std::min(least, n), most = std::max(most, n), sum += n, empty += n == 0; }
};

// Width to height, in steps that tell portrait, square and landscape apart.
std::string aspect_name(const Tensor& image) {  // [C, H, W]
  const double ratio = static_cast<double>(image.size(2)) / static_cast<double>(image.size(1));
  return fmt::format("{:.2f} (width / height)", std::round(ratio * 4) / 4);
}

// Captions of what was looked at: one a sample, or all of them.
struct CaptionCounts {
  std::set<std::string> distinct;
  Lengths characters, words;
  int64_t count = 0;
  void add(const std::string& caption) {
    ++count;
    characters.add(static_cast<int64_t>(caption.size()));
    const auto parts = split(caption, ' ');
    words.add(std::count_if(parts.begin(), parts.end(), [](const std::string& word) { return !word.empty(); }));
    distinct.insert(caption);
  }
  void print() const {
    const auto mean = [&](const Lengths& l) { return static_cast<double>(l.sum) / static_cast<double>(count); };
    if (count == 0)
      fmt::print("captions\n  none\n");
    else
      fmt::print("captions\n  {} distinct, {} empty; characters {}-{}, mean {:.1f}; words {}-{}, mean {:.1f}\n",
                 distinct.size(), characters.empty, characters.least, characters.most, mean(characters), words.least,
                 words.most, mean(words));
  }
};

// A list of image files: their headers say the sizes, so nothing is decoded.
void info_of_files(const Dataset& dataset, const std::vector<int64_t>& indices) {
  std::vector<fs::path> files;
  CaptionCounts captions;
  for (int64_t i : indices) {
    files.push_back(dataset.image_file(i));
    for (const std::string& caption : dataset.captions(i)) captions.add(caption);
  }
  fmt::print("{}", format_sizes(summarise_sizes(io::probe_image_sizes(files))));
  captions.print();
}

void info_of_samples(const Dataset& dataset, const std::vector<int64_t>& indices) {
  const auto looked_at = static_cast<int64_t>(indices.size());
  const std::vector<std::string> names = dataset.class_names();
  Histogram classes, sizes, aspects;
  std::map<std::string, Histogram> attributes;
  CaptionCounts captions;
  for (int64_t i : indices) {
    const Sample sample = dataset.get(i, 0, 0);
    if (sample.label >= 0) {
      const size_t label = static_cast<size_t>(sample.label);
      ++classes[fmt::format("{:>3} {}", label, label < names.size() ? names[label] : "")];
    }
    const Tensor& seen = sample.image.defined() ? sample.image : sample.latent_mean;  // of a cache: latents
    ++sizes[fmt::format("{} x {} x {}", seen.size(0), seen.size(1), seen.size(2))];
    ++aspects[aspect_name(seen)];
    for (const auto& [name, word] : sample.attributes) ++attributes[name][word];
    captions.add(sample.caption);
  }
  if (!classes.empty()) print_histogram("classes", classes, looked_at);
  for (const auto& [name, counts] : attributes) print_histogram("attribute " + name, counts, looked_at);
  print_histogram("image size (channels x height x width)", sizes, looked_at);
  print_histogram("aspect", aspects, looked_at);
  captions.print();
}

// Of all samples: known without reading any.
void info_of_buckets(const Dataset& dataset) {
  const std::vector<BucketSize> sizes = dataset.buckets();
  if (sizes.size() < 2) return;
  std::vector<int64_t> counts(sizes.size());
  for (int64_t i = 0; i < dataset.size(); ++i) ++counts[static_cast<size_t>(dataset.bucket_of(i))];
  fmt::print("buckets (height x width), {} of {} have images\n", std::count_if(counts.begin(), counts.end(), [](int64_t n) { return n > 0; }),
             sizes.size());
  for (size_t b = 0; b < sizes.size(); ++b)
    if (counts[b] > 0)
      fmt::print("  {:<24} {:>9}  {:5.1f} %\n", bucket_text(sizes[b]), counts[b],
               100.0 * static_cast<double>(counts[b]) / static_cast<double>(dataset.size()));
}

void info(const DataArguments& a) {
  const auto dataset = open_dataset(a);
  fmt::print("{}\nsamples      {}\nfingerprint  {}\n", dataset->description(), dataset->size(), dataset->fingerprint());
  if (dataset->size() == 0) fail<DataError>("the data set is empty: {}", dataset->description());
  info_of_buckets(*dataset);
  const int64_t looked_at = std::min(dataset->size(), a.limit);
  std::vector<int64_t> indices;
  for (int64_t k = 0; k < looked_at; ++k) indices.push_back(k * dataset->size() / looked_at);  // evenly spread
  if (looked_at < dataset->size())
    fmt::print("The following is of {} samples, evenly spread (--limit N).\n", looked_at);
  if (dataset->image_file(0).empty())
    info_of_samples(*dataset, indices);
  else
    info_of_files(*dataset, indices);
}

void verify(const DataArguments& a) {
  const auto dataset = open_dataset(a);
  const int64_t total = dataset->size();
  if (total == 0) fail<DataError>("the data set is empty: {}", dataset->description());
  Progress progress("verify", total);
  std::mutex mutex;
  int64_t done = 0, broken = 0;
  parallel_for(static_cast<size_t>(total), a.threads, [&](size_t i) {
    std::string problem;
    try {
      const Sample sample = dataset->strict().get(static_cast<int64_t>(i), 0, 0);  // not another in its place
      const Tensor& read = sample.image.defined() ? sample.image : sample.latent_mean;
      if (read.numel() == 0) problem = fmt::format("sample {}: the image is empty", sample.id);
    } catch (const std::exception& e) {
      problem = e.what();
    }
    std::lock_guard lock(mutex);
    if (!problem.empty()) {
      ++broken;
      Progress::interrupt_line();
      fmt::print("sample {}: {}\n", i, problem);
    }
    progress.update(++done, broken > 0 ? fmt::format("{} broken", broken) : "");
  });
  progress.finish();
  if (broken > 0) fail<DataError>("{}: {} of {} samples are broken", dataset->description(), broken, total);
  fmt::print("{}: all {} samples can be read\n", dataset->description(), total);
}

}  // namespace

void add_data_command(CLI::App& app) {
  auto* data = app.add_subcommand("data", "pack, describe or check a data set");
  data->require_subcommand(1);
  auto a = std::make_shared<DataArguments>();
  auto* packing = add_data_action(data, "pack", "write a split into one HDF5 file that the kind 'hdf5' reads", *a);
  packing->add_option("--out", a->out, "file to write, .h5")->required();
  packing->callback([a] { pack(*a); });
  auto* describing = add_data_action(data, "info", "size, classes, image sizes, captions, fingerprint", *a);
  describing->add_option("--limit", a->limit, "samples looked at")->check(CLI::PositiveNumber);
  describing->callback([a] { info(*a); });
  auto* checking = add_data_action(data, "verify", "read every sample, report each broken one (exit code 3)", *a);
  checking->add_option("--threads", a->threads, "0: one a core")->check(CLI::NonNegativeNumber);
  checking->callback([a] { verify(*a); });
  add_data_cache_command(data);
  add_data_teacher_command(data);
  data->footer(
      "Examples:\n"
      "  fewstep data info configs/quickstart/vq.yaml\n"
      "  fewstep data pack --kind image_folder folder=photos image_size=256 --out train.h5\n"
      "  fewstep data verify train.h5\n"
      "  fewstep data cache configs/sdxl/tiny.yaml --vae runs/vae --variants 4 --out train-latents.h5\n"
      "  fewstep data teacher configs/sdxl/text16.yaml --model runs/sdxl/text16 --count 4000 --with guidance=1.5 sampling_steps=50 "
      "--out teacher.h5");
}

}  // namespace fewstep
