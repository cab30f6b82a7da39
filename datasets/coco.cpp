#include "datasets/coco.h"

#include <algorithm>

#include "datasets/coco_captions.h"
#include "src/base/error.h"
#include "src/base/log.h"

namespace fewstep {
namespace {

namespace fs = std::filesystem;

std::vector<ImageEntry> read_entries(const CocoConfig& config) {
  const std::string& name = config.annotations;
  std::vector<ImageEntry> entries;
  for (CocoImage& image : read_coco_captions(name)) {
    ImageEntry& entry =
        entries.emplace_back(ImageEntry{image.id, fs::path(config.folder) / image.file_name, image.file_name, {}});
    for (CocoCaption& caption : image.captions) entry.captions.push_back(std::move(caption.text));
  }
  // Some images of the official files have no caption: they cannot be asked for, and are left out, said once.
  const size_t all = entries.size();
  std::erase_if(entries, [](const ImageEntry& e) { return e.captions.empty(); });
  if (entries.empty()) fail<DataError>("{}: none of {} images has a caption", name, all);
  if (entries.size() < all)
    log::warn("{}: {} of {} images have no caption and are left out", name, all - entries.size(), all);
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
  return entries;
}

}  // namespace

void CocoConfig::describe(config::Visitor& v) {
  v.field("annotations", annotations, "captions file, e.g. annotations/captions_train2017.json");
  v.require("annotations");
  v.field("folder", folder, "folder of the images, e.g. train2017");
  v.require("folder");
  describe_image_list(v, images);
}

std::unique_ptr<Dataset> CocoConfig::build(Split split) const {
  std::vector<ImageEntry> entries = read_entries(*this);
  // A wrong folder is found now; single files that are missing, by get() and `fewstep data verify`.
  if (!fs::exists(entries.front().path))
    fail<DataError>("{}: not found: is data.folder the folder of the images that {} lists?",
                    entries.front().path.string(), annotations);
  entries = entries_of_split(std::move(entries), split, images);
  return make_image_list(std::move(entries), images, fmt::format("COCO captions {}", annotations));
}

}  // namespace fewstep
