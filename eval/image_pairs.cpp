#include "eval/image_pairs.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>

#include "eval/compare.h"
#include "eval/image_source.h"
#include "eval/diversity.h"
#include "src/base/error.h"
#include "src/base/progress.h"
#include "src/base/signals.h"
#include "src/io/image.h"
#include "src/io/image_sizes.h"
#include "src/tensor/ops.h"

namespace fewstep::eval {
namespace fs = std::filesystem;
namespace {

// What an image is paired by -> its file.
using Keyed = std::map<std::string, fs::path>;
struct KeyedFolder {
  fs::path folder;
  std::vector<std::string> order;
  Keyed files;
};

void insert(KeyedFolder& out, std::string key, const fs::path& file) {
  const auto [place, is_new] = out.files.emplace(key, file);
  if (!is_new)
    fail<DataError>("{} and {} have the same name; which of them belongs to the pair cannot be told",
                    place->second.string(), file.string());
  out.order.push_back(std::move(key));
}

KeyedFolder by_file_name(const fs::path& folder) {
  KeyedFolder out{.folder = folder, .order = {}, .files = {}};
  for (const fs::path& file : image_files(folder))
    insert(out, file.lexically_relative(folder).replace_extension().generic_string(), file);
  return out;
}

KeyedFolder by_caption(const fs::path& folder) {
  KeyedFolder out{.folder = folder, .order = {}, .files = {}};
  const CaptionedFiles set = read_captions(folder, folder / "metadata.jsonl");
  std::map<std::string, int64_t> seen;
  for (size_t i = 0; i < set.names.size(); ++i)
    insert(out, fmt::format("'{}', image {}", set.texts[i], ++seen[set.texts[i]]), folder / set.names[i]);
  return out;
}

void check_partners(const KeyedFolder& from, const KeyedFolder& to) {
  std::vector<std::string> alone;
  for (const std::string& key : from.order)
    if (!to.files.contains(key)) alone.push_back(key);
  if (alone.empty()) return;
  fail<DataError>("{}: {} has no partner in {} ({} of {} images have none)", from.files.at(alone.front()).string(),
                  alone.front(), to.folder.string(), alone.size(), from.order.size());
}

void check_sizes(const std::vector<ImagePair>& pairs) {
  std::vector<fs::path> files;
  for (const ImagePair& pair : pairs) files.push_back(pair.a), files.push_back(pair.b);
  const std::vector<io::ProbedImage> probed = io::probe_image_sizes(files);
  size_t first = pairs.size(), different = 0;
  for (size_t i = 0; i < pairs.size(); ++i) {
    for (const io::ProbedImage* side : {&probed[2 * i], &probed[2 * i + 1]})
      if (!side->error.empty()) fail<DataError>("{}", side->error);
    const io::ImageSize a = probed[2 * i].size, b = probed[2 * i + 1].size;
    if (a.width == b.width && a.height == b.height) continue;
    ++different, first = std::min(first, i);
  }
  if (different == 0) return;
  const io::ImageSize a = probed[2 * first].size, b = probed[2 * first + 1].size;
  fail<DataError>(
      "{}: {} x {} pixels, but {}: {} x {}; {} of {} pairs differ in size, and resizing would change what "
      "is compared",
      pairs[first].a.string(), a.width, a.height, pairs[first].b.string(), b.width, b.height, different, pairs.size());
}

Json value_of(const Value& v) {
  Json json = {{"value", v.value}, {"ci95", v.ci95}, {"n", v.n}};
  if (!v.note.empty()) json["note"] = v.note;
  return json;
}

Value finite_mean(const std::vector<double>& values) {
  std::vector<double> finite;
  for (double v : values)
    if (std::isfinite(v)) finite.push_back(v);
  Value mean = mean_over(finite);
  if (finite.size() < values.size())
    mean.note = fmt::format("{} of {} pairs are equal: their PSNR is infinite, the mean is over the others",
                            values.size() - finite.size(), values.size());
  return mean;
}

}  // namespace

std::vector<ImagePair> find_pairs(const fs::path& a, const fs::path& b, PairBy by) {
  for (const fs::path& folder : {a, b})
    if (!fs::is_directory(folder)) fail<DataError>("{}: no such folder of images", folder.string());
  const auto keyed = [by](const fs::path& folder) {
    KeyedFolder out = by == PairBy::caption ? by_caption(folder) : by_file_name(folder);
    if (out.order.empty())
      fail<DataError>("{}: no .png, .jpg, .jpeg or .webp files below this folder", folder.string());
    return out;
  };
  const KeyedFolder from = keyed(a), to = keyed(b);
  check_partners(from, to), check_partners(to, from);
  std::vector<ImagePair> pairs;
  for (const std::string& key : from.order) {
    const fs::path& file = from.files.at(key);
    pairs.push_back({file.lexically_relative(a).generic_string(), file, to.files.at(key)});
  }
  check_sizes(pairs);
  return pairs;
}

PairScores score_pairs(const std::vector<ImagePair>& pairs, const PerceptualDistance* perceptual) {
  PairScores scores;
  Progress progress("pairs", static_cast<int64_t>(pairs.size()));
  for (size_t i = 0; i < pairs.size(); ++i) {
    if (signals::stop_requested()) throw Interrupted("evaluation stopped; nothing was written");
    const Tensor a = io::read_image(pairs[i].a), b = io::read_image(pairs[i].b);
    try {
      scores.psnr.push_back(psnr(a, b));
      scores.ssim.push_back(ssim(a, b));
      if (perceptual) {
        scores.perceptual.push_back((*perceptual)(a.unsqueeze(0), b.unsqueeze(0)).item<double>());
        if (!std::isfinite(scores.perceptual.back()))
          fail<NumericError>("{}: its distance to {} is {}", pairs[i].a.string(), pairs[i].b.string(),
                             scores.perceptual.back());
      }
    } catch (const DataError& e) {
      fail<DataError>("{}: {}", pairs[i].a.string(), e.what());
    }
    progress.update(static_cast<int64_t>(i) + 1);
  }
  progress.finish();
  return scores;
}

Json summarise_pairs(const std::vector<ImagePair>& pairs, const PairScores& scores,
                     const PerceptualDistance* perceptual, int64_t worst) {
  Json metrics = {{"PSNR", value_of(finite_mean(scores.psnr))}, {"SSIM", value_of(mean_over(scores.ssim))}};
  if (perceptual) metrics[perceptual->metric()] = value_of(mean_over(scores.perceptual));
  std::vector<size_t> order(pairs.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t i, size_t j) {
    return perceptual ? scores.perceptual[i] > scores.perceptual[j] : scores.ssim[i] < scores.ssim[j];
  });
  order.resize(std::min(order.size(), static_cast<size_t>(worst)));
  Json list = Json::array();
  for (size_t i : order) {
    Json pair = {{"name", pairs[i].name}, {"PSNR", scores.psnr[i]}, {"SSIM", scores.ssim[i]}};
    if (perceptual) pair[perceptual->metric()] = scores.perceptual[i];
    list.push_back(std::move(pair));
  }
  Json out = {
      {"metrics", metrics},
      {"pairs", pairs.size()},
      {"identical", std::count_if(scores.psnr.begin(), scores.psnr.end(), [](double v) { return std::isinf(v); })},
      {"worst", list},
      {"worst_by", perceptual ? perceptual->metric() : "SSIM"}};
  if (perceptual) out["encoder"] = {{"name", perceptual->identity().name}, {"sha256", perceptual->identity().sha256}};
  return out;
}

}  // namespace fewstep::eval
