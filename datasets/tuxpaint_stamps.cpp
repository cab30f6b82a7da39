#include "datasets/tuxpaint_stamps.h"

#include <algorithm>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/text.h"

namespace fewstep {
namespace {

namespace fs = std::filesystem;

bool drawn_for_mirroring(const std::string& stem) {
  return stem.ends_with("_mirror") || stem.ends_with("_flip") || stem.ends_with("_mirrorflip");
}

std::vector<fs::path> list_stamps(const fs::path& folder) {  // relative, sorted
  if (!fs::is_directory(folder))
    fail<DataError>(
        "{} not found: install the pictures with `apt-get install tuxpaint-stamps-default`, or set data.folder to the "
        "folder that holds them",
        folder.string());
  std::vector<fs::path> names;
  for (const auto& item : fs::recursive_directory_iterator(folder))
    if (item.is_regular_file() && item.path().extension() == ".png" &&
        !drawn_for_mirroring(item.path().stem().string()))
      names.push_back(item.path().lexically_relative(folder));
  std::sort(names.begin(), names.end());
  if (names.empty())
    fail<DataError>("{}: no PNG pictures in it (they come with `apt-get install tuxpaint-stamps-default`)",
                    folder.string());
  return names;
}

// First line of NAME.txt; else "07_traffic_light" -> "traffic light".
std::string stamp_caption(const fs::path& picture) {
  const fs::path path = fs::path(picture).replace_extension(".txt");
  if (fs::exists(path)) {
    const std::vector<std::string> lines = split(read_text(path), '\n');
    if (const std::string_view english = trim(lines.front()); !english.empty()) return std::string(english);
  }
  std::string name = picture.stem().string();
  std::replace_if(
      name.begin(), name.end(), [](char c) { return c == '_' || c == '-'; }, ' ');
  const size_t begin = name.find_first_not_of("0123456789 ");
  return begin == name.npos ? name : name.substr(begin);
}

}  // namespace

void TuxpaintStampsConfig::describe(config::Visitor& v) {
  v.field("folder", folder, "folder of the stamps (Debian: tuxpaint-stamps-default)");
  describe_image_list(v, images);
}

std::unique_ptr<Dataset> TuxpaintStampsConfig::build(Split split) const {
  const std::vector<fs::path> names = list_stamps(folder);
  std::vector<std::string> classes;  // the folders at the top: animals, clothes, food, ...
  for (const fs::path& name : names)
    if (name.has_parent_path()) classes.push_back(name.begin()->string());
  std::sort(classes.begin(), classes.end());
  classes.erase(std::unique(classes.begin(), classes.end()), classes.end());

  std::vector<ImageEntry> entries;
  for (const fs::path& name : names) {
    ImageEntry entry;
    entry.id = static_cast<int64_t>(entries.size());
    entry.path = fs::path(folder) / name;
    entry.name = name.string();
    entry.captions = {stamp_caption(entry.path)};
    if (name.has_parent_path())
      entry.label = std::lower_bound(classes.begin(), classes.end(), name.begin()->string()) - classes.begin();
    entries.push_back(std::move(entry));
  }
  return make_image_list(entries_of_split(std::move(entries), split, images), images,
                         fmt::format("Tux Paint stamps {}", name_of(split)), std::move(classes));
}

}  // namespace fewstep
