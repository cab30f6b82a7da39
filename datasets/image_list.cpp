#include "datasets/image_list.h"

#include <algorithm>
#include <system_error>

#include "src/base/error.h"
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
  ImageList(std::vector<ImageEntry> entries, const ImageListOptions& options, std::string description)
      : entries_(std::move(entries)), options_(options), description_(std::move(description)) {}

  int64_t size() const override { return static_cast<int64_t>(entries_.size()); }

  Sample get(int64_t index, uint64_t seed, int64_t epoch) const override {
    const ImageEntry& entry = entries_.at(static_cast<size_t>(index));
    Sample sample;
    sample.id = entry.id;
    const Tensor image = io::read_image(entry.path, options_.grey ? io::Channels::grey : io::Channels::rgb);
    sample.image = resize_and_crop(image, options_.image_size).contiguous();
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
    for (const ImageEntry& entry : entries_) {
      std::error_code error;  // a file that is gone is reported by get()
      const auto bytes = fs::file_size(entry.path, error);
      add(fmt::format("{} {} {}", entry.id, entry.name, error ? 0 : bytes));
      for (const std::string& caption : entry.captions) add(caption);
    }
    return hash.hex();
  }

 private:
  std::vector<ImageEntry> entries_;
  ImageListOptions options_;
  std::string description_;
};

}  // namespace

void describe_image_list(config::Visitor& v, ImageListOptions& o) {
  v.field("image_size", o.image_size, "shorter side after antialiased resizing; the central square is kept",
          config::Range{8, 4096});
  v.field("grey", o.grey, "read as one grey channel instead of RGB");
  v.field("captions", o.captions, "which caption of an image that has several", kCaptionChoices);
  v.field("heldout", o.heldout, "share of images in the heldout split, by a hash of the file name", config::kUnit);
  v.field("test", o.test, "share of images in the test split, by the same hash", config::kUnit);
  v.field("split_seed", o.split_seed, "another seed gives another split", config::kNonNegative);
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
                                         std::string description) {
  return std::make_unique<ImageList>(std::move(entries), options, std::move(description));
}

Tensor resize_and_crop(const Tensor& image, int64_t size) {
  const int64_t height = image.size(1), width = image.size(2), shorter = std::min(height, width);
  if (height == size && width == size) return image;
  const auto scaled = [&](int64_t side) { return std::max(size, (side * size + shorter / 2) / shorter); };
  return io::center_crop(io::resize(image, scaled(width), scaled(height)), size, size);
}

bool is_image_name(const fs::path& path) {
  const std::string extension = to_lower(path.extension().string());
  return extension == ".png" || extension == ".jpg" || extension == ".jpeg" || extension == ".webp";
}

}  // namespace fewstep
