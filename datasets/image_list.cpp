#include "datasets/image_list.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <system_error>

#include "datasets/size_scan.h"
#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/hash.h"
#include "src/base/philox.h"
#include "src/base/text.h"
#include "src/tensor/ops.h"

namespace fewstep {
namespace {

namespace fs = std::filesystem;
constexpr config::Choice kCaptionChoices[] = {{"first", 0}, {"longest", 1}, {"seeded", 2}};

class ImageList final : public Dataset {
 public:
  ImageList(std::vector<ImageEntry> entries, const ImageListOptions& options, std::string description,
            std::vector<std::string> class_names)
      : entries_(std::move(entries)),
        options_(options),
        description_(std::move(description)),
        class_names_(std::move(class_names)) {
    targets_.sizes = {{options.image_size, options.image_size}};
    // Whether an image may be enlarged was answered when targets were assigned; a merged bucket may enlarge a little.
    options_.targets.framing.upscale = true;
    if (!options.targets.needs_sizes()) return;
    std::vector<fs::path> files;
    std::vector<std::string> names;
    for (const ImageEntry& entry : entries_) files.push_back(entry.path), names.push_back(entry.path.string());
    targets_ = assign_targets(scan_image_sizes(files, options.size_cache), names, options.targets, options.image_size,
                              description_);
    std::vector<ImageEntry> kept;
    for (int64_t i : targets_.kept) kept.push_back(std::move(entries_[static_cast<size_t>(i)]));
    entries_ = std::move(kept);
  }

  int64_t size() const override { return static_cast<int64_t>(entries_.size()); }
  std::vector<BucketSize> buckets() const override { return targets_.sizes; }
  int64_t bucket_of(int64_t index) const override {
    return targets_.bucket_of.empty() ? 0 : targets_.bucket_of.at(static_cast<size_t>(index));
  }
  SmallBuckets small_buckets() const override { return options_.targets.buckets.small_buckets; }
  bool can_reframe() const override { return true; }
  Json conditioning_facts() const override { return target_facts(options_.targets, options_.image_size); }
  std::vector<std::string> class_names() const override { return class_names_; }

  Sample get(int64_t index, uint64_t seed, int64_t epoch) const override {
    return get_in(index, bucket_of(index), seed, epoch);
  }
  Sample get_in(int64_t index, int64_t bucket, uint64_t seed, int64_t epoch) const override {
    const ImageEntry& entry = entries_.at(static_cast<size_t>(index));
    const FramingConfig& framing = options_.targets.framing;
    const std::string bytes = read_text(entry.path), name = entry.path.string();
    const io::ImageSize size = io::decode_image_size(bytes, name);
    const Frame frame = choose_frame(size.height, size.width, targets_.sizes.at(static_cast<size_t>(bucket)), framing,
                                     {seed, epoch, entry.id});
    Sample sample;
    sample.id = entry.id;
    sample.image =
        decode_frame(bytes, name, options_.grey ? io::Channels::grey : io::Channels::rgb, frame, framing.decode);
    sample.micro = frame.micro;
    sample.aesthetic = entry.aesthetic;
    sample.label = entry.label;
    if (const auto all = captions(index); !all.empty())
      sample.caption =
          all[static_cast<size_t>(choose_caption(static_cast<int64_t>(all.size()), seed, epoch, entry.id))];
    return sample;
  }
  std::vector<std::string> captions(int64_t index) const override {
    const std::vector<std::string>& all = entries_.at(static_cast<size_t>(index)).captions;
    if (all.empty() || options_.captions == CaptionChoice::seeded) return all;
    if (options_.captions == CaptionChoice::first) return {all.front()};
    return {
        *std::max_element(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.size() < b.size(); })};
  }
  fs::path image_file(int64_t index) const override { return entries_.at(static_cast<size_t>(index)).path; }
  std::string description() const override { return fmt::format("{}: {} images", description_, entries_.size()); }

  std::string fingerprint() const override {
    Sha256 hash;
    const auto add = [&](const std::string& text) { hash.update(text.c_str(), text.size() + 1); };  // with the final 0
    add(fmt::format("image list 1 size {} grey {} captions {}", options_.image_size, options_.grey,
                    static_cast<int>(options_.captions)));
    // Only what differs from a centre-cropped square, which is what the line above has always meant.
    if (conditioning_facts() != target_facts({}, options_.image_size)) add(conditioning_facts().dump());
    for (const ImageEntry& entry : entries_) {
      std::error_code error;  // a file that is gone is reported by get()
      const auto bytes = fs::file_size(entry.path, error);
      add(fmt::format("{} {} {}", entry.id, entry.name, error ? 0 : bytes));
      for (const std::string& caption : entry.captions) add(caption);
      // A sample without a score has always been written as one of "6".
      const std::string score = entry.aesthetic == kNoScore ? "6" : entry.aesthetic == 6 ? "6.0" : fmt::format("{}", entry.aesthetic);
      if (entry.label >= 0 || entry.aesthetic != kNoScore) add(fmt::format("label {} aesthetic {}", entry.label, score));
    }
    return hash.hex();
  }

 private:
  std::vector<ImageEntry> entries_;
  ImageListOptions options_;
  std::string description_;
  std::vector<std::string> class_names_;
  Targets targets_;
};

}  // namespace

void describe_image_list(config::Visitor& v, ImageListOptions& o) {
  v.field("image_size", o.image_size, "without buckets: side of the square, cut from the image resized (antialiased) so that its shorter side has it",
          config::Range{8, 4096});
  v.field("grey", o.grey, "read as one grey channel instead of RGB");
  v.field("captions", o.captions, "which caption of an image that has several", kCaptionChoices);
  v.field("heldout", o.heldout, "share of images in the heldout split, by a hash of the file name", config::kUnit);
  v.field("test", o.test, "share of images in the test split, by the same hash", config::kUnit);
  v.field("split_seed", o.split_seed, "another seed gives another split", config::kNonNegative);
  describe_targets(v, o.targets);
  v.field("size_cache", o.size_cache,
          "file that remembers the sizes of images between runs, by path, bytes and time; empty: headers are read anew");
  v.check(o.heldout + o.test <= 1, "test", "heldout + test must not be above 1");
}

std::vector<ImageEntry> entries_of_split(std::vector<ImageEntry> entries, Split split, const ImageListOptions& o) {
  std::erase_if(entries, [&](const ImageEntry& entry) {
    const double u = philox_uniform(static_cast<uint64_t>(o.split_seed), fnv1a64(entry.name), 0);
    return (u < o.test ? Split::test : u < o.test + o.heldout ? Split::heldout : Split::train) != split;
  });
  return entries;
}

std::unique_ptr<Dataset> make_image_list(std::vector<ImageEntry> entries, const ImageListOptions& options,
                                         std::string description, std::vector<std::string> class_names) {
  return readable_samples(std::make_unique<ImageList>(std::move(entries), options, std::move(description), std::move(class_names)),
                          options.targets.readable);
}

bool is_image_name(const fs::path& path) {
  const std::string extension = to_lower(path.extension().string());
  return extension == ".png" || extension == ".jpg" || extension == ".jpeg" || extension == ".webp";
}

}  // namespace fewstep
