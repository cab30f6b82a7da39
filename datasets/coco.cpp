#include "datasets/coco.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "src/base/error.h"
#include "src/base/json.h"
#include "src/base/log.h"
#include "src/base/text.h"

namespace fewstep {
namespace {

namespace fs = std::filesystem;

const Json& array_of(const Json& file, const char* key, const std::string& name) {
  if (!file.is_object() || !file.contains(key) || !file[key].is_array())
    fail<DataError>("{}: no array \"{}\": not a COCO captions file", name, key);
  return file[key];
}

// Row `index` of array `key` of the file: named in errors only, the file has 200,000 rows.
struct Place {
  const std::string& file;
  const char* array;
  int64_t index;
  std::string text() const { return fmt::format("{}: {}[{}]", file, array, index); }
};

template <class T>
T member(const Json& row, const char* key, const Place& place) {
  try {
    return row.at(key).get<T>();
  } catch (const nlohmann::json::exception&) {
    fail<DataError>("{}: \"{}\" is {}", place.text(), key,
                    row.is_object() && row.contains(key) ? "of the wrong type: " + row[key].dump() : "missing");
  }
}

std::vector<ImageEntry> read_entries(const CocoConfig& config) {
  const std::string& name = config.annotations;
  const Json file = read_json(name);
  std::vector<ImageEntry> entries;
  std::unordered_map<int64_t, size_t> by_id;
  for (const Json& image : array_of(file, "images", name)) {
    const Place place{name, "images", static_cast<int64_t>(entries.size())};
    const int64_t id = member<int64_t>(image, "id", place);
    const auto file_name = member<std::string>(image, "file_name", place);
    if (!by_id.emplace(id, entries.size()).second) fail<DataError>("{}: image id {} is given twice", place.text(), id);
    entries.push_back({id, fs::path(config.folder) / file_name, file_name, {}});
  }
  int64_t n = 0;
  for (const Json& annotation : array_of(file, "annotations", name)) {
    const Place place{name, "annotations", n++};
    const auto id = member<int64_t>(annotation, "image_id", place);
    const auto found = by_id.find(id);
    if (found == by_id.end()) fail<DataError>("{}: there is no image with id {}", place.text(), id);
    entries[found->second].captions.emplace_back(trim(member<std::string>(annotation, "caption", place)));
  }
  if (entries.empty()) fail<DataError>("{}: \"images\" is empty", name);
  // Some images of the official files have no caption: they cannot be asked for, and are left out, said once.
  const size_t all = entries.size();
  std::erase_if(entries, [](const ImageEntry& e) { return e.captions.empty(); });
  if (entries.empty()) fail<DataError>("{}: none of {} images has a caption", name, all);
  if (entries.size() < all) log::warn("{}: {} of {} images have no caption and are left out", name, all - entries.size(), all);
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
