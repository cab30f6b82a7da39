#include "datasets/coco_captions.h"

#include <nlohmann/json.hpp>
#include <unordered_map>

#include "src/base/error.h"
#include "src/base/json.h"
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

}  // namespace

std::vector<CocoImage> read_coco_captions(const fs::path& path) {
  const std::string name = path.string();
  const Json file = read_json(path);
  std::vector<CocoImage> images;
  std::unordered_map<int64_t, size_t> by_id;
  for (const Json& image : array_of(file, "images", name)) {
    const Place place{name, "images", static_cast<int64_t>(images.size())};
    const int64_t id = member<int64_t>(image, "id", place);
    if (!by_id.emplace(id, images.size()).second) fail<DataError>("{}: image id {} is given twice", place.text(), id);
    images.push_back({id, member<std::string>(image, "file_name", place), {}});
  }
  int64_t n = 0;
  for (const Json& annotation : array_of(file, "annotations", name)) {
    const Place place{name, "annotations", n++};
    const auto id = member<int64_t>(annotation, "image_id", place);
    const auto found = by_id.find(id);
    if (found == by_id.end()) fail<DataError>("{}: there is no image with id {}", place.text(), id);
    images[found->second].captions.push_back({annotation.contains("id") ? member<int64_t>(annotation, "id", place) : n,
                                              std::string(trim(member<std::string>(annotation, "caption", place)))});
  }
  if (images.empty()) fail<DataError>("{}: \"images\" is empty", name);
  return images;
}

std::vector<CocoImage> read_karpathy_captions(const fs::path& path, const std::string& split) {
  const std::string name = path.string();
  const Json file = read_json(path);
  std::vector<CocoImage> images;
  std::string seen;
  int64_t n = 0;
  for (const Json& image : array_of(file, "images", name)) {
    const Place place{name, "images", n++};
    const auto own = member<std::string>(image, "split", place);
    if (own != split) {
      if (seen.find(own) == std::string::npos) seen += (seen.empty() ? "" : ", ") + own;
      continue;
    }
    const fs::path folder = image.contains("filepath") ? member<std::string>(image, "filepath", place) : std::string();
    CocoImage& out = images.emplace_back();
    out.id = member<int64_t>(image, image.contains("cocoid") ? "cocoid" : "imgid", place);
    out.file_name = (folder / member<std::string>(image, "filename", place)).string();
    for (const Json& sentence : member<Json>(image, "sentences", place))
      out.captions.push_back(
          {member<int64_t>(sentence, "sentid", place), std::string(trim(member<std::string>(sentence, "raw", place)))});
  }
  if (images.empty())
    fail<DataError>("{}: no image of split '{}'; its splits are {}", name, split, seen.empty() ? "none" : seen);
  return images;
}

}  // namespace fewstep
