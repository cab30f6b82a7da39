#include "datasets/image_folder.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/json.h"
#include "src/base/text.h"

namespace fewstep {
namespace {

namespace fs = std::filesystem;
struct FolderRow {
  std::vector<std::string> captions;
  double aesthetic = kNoScore;
  int64_t label = -1;
};
using FolderRows = std::map<std::string, FolderRow>;  // by file name, as written

// Sorted paths relative to `folder`: the order of a directory is not the same on every machine.
std::vector<fs::path> list_images(const fs::path& folder) {
  std::vector<fs::path> names;
  try {
    for (const auto& item : fs::recursive_directory_iterator(folder, fs::directory_options::follow_directory_symlink))
      if (item.is_regular_file() && is_image_name(item.path())) names.push_back(item.path().lexically_relative(folder));
  } catch (const fs::filesystem_error& e) {
    fail<DataError>("{}: cannot be listed: {} (set data.folder)", folder.string(), e.code().message());
  }
  std::sort(names.begin(), names.end());
  if (names.empty()) fail<DataError>("{}: no .png, .jpg, .jpeg or .webp images", folder.string());
  return names;
}

std::vector<std::string> captions_of(const Json& value, const std::string& place) {
  const Json list = value.is_array() ? value : Json::array({value});
  std::vector<std::string> captions;
  for (const Json& caption : list) {
    if (!caption.is_string()) fail<DataError>("{}: the caption is {}, not a string", place, caption.dump());
    captions.push_back(caption.get<std::string>());
  }
  return captions;
}

FolderRow row_of_metadata(const Json& row, const std::string& place) {
  const char* key = row.contains("text") ? "text" : "caption";
  if (!row.contains(key)) fail<DataError>("{}: neither \"text\" nor \"caption\"", place);
  FolderRow out{.captions = captions_of(row[key], place)};
  if (row.contains("aesthetic")) {
    if (!row["aesthetic"].is_number() || row["aesthetic"].get<double>() < 0)
      fail<DataError>("{}: \"aesthetic\" is {}, not a number from 0 on", place, row["aesthetic"].dump());
    out.aesthetic = row["aesthetic"].get<double>();
  }
  if (row.contains("label")) {
    if (!row["label"].is_number_integer() || row["label"].get<int64_t>() < 0)
      fail<DataError>("{}: \"label\" is {}, not a class from 0 on", place, row["label"].dump());
    out.label = row["label"].get<int64_t>();
  }
  return out;
}

FolderRows read_metadata(const fs::path& folder) {
  const fs::path path = folder / "metadata.jsonl";
  FolderRows rows;
  if (!fs::exists(path)) return rows;
  const std::vector<std::string> lines = split(read_text(path), '\n');
  for (size_t n = 0; n < lines.size(); ++n) {
    if (trim(lines[n]).empty()) continue;
    const std::string place = fmt::format("{}:{}", path.string(), n + 1);
    const Json row = Json::parse(lines[n], nullptr, false);
    if (!row.is_object()) fail<DataError>("{}: not a JSON object", place);
    if (!row.contains("file_name") || !row["file_name"].is_string()) fail<DataError>("{}: no \"file_name\"", place);
    FolderRow read = row_of_metadata(row, place);
    const std::string name = fs::path(row["file_name"].get<std::string>()).lexically_normal().string();
    if (!fs::exists(folder / name)) fail<DataError>("{}: there is no file {}", place, (folder / name).string());
    if (!rows.emplace(name, std::move(read)).second) fail<DataError>("{}: {} is given twice", place, name);
  }
  return rows;
}

// Names of the folders in `root`, sorted: class k is the k-th.
std::vector<std::string> list_class_folders(const fs::path& root) {
  std::vector<std::string> names;
  for (const auto& item : fs::directory_iterator(root))
    if (item.is_directory()) names.push_back(item.path().filename().string());
  std::sort(names.begin(), names.end());
  if (names.empty()) fail<DataError>("{}: no folders in it, but data.class_folders asks for one a class", root.string());
  return names;
}

int64_t class_of_path(const fs::path& file, const std::vector<std::string>& classes, const fs::path& root) {
  const std::string name = file.begin()->string();
  const auto found = std::lower_bound(classes.begin(), classes.end(), name);
  if (found == classes.end() || *found != name || !file.has_parent_path())
    fail<DataError>("{}: not in the folder of a class (there are {}; data.class_folders)", (root / file).string(),
                    classes.size());
  return found - classes.begin();
}

std::vector<std::string> read_caption_file(const fs::path& path) {
  std::vector<std::string> captions;
  for (const std::string& line : split(read_text(path), '\n'))
    if (const auto text = trim(line); !text.empty()) captions.emplace_back(text);
  return captions;
}

}  // namespace

void ImageFolderConfig::describe(config::Visitor& v) {
  v.field("folder", folder, "folder of images with captions in NAME.txt or metadata.jsonl");
  v.require("folder");
  v.field("require_captions", require_captions, "an image without caption is an error; false: its caption is empty");
  v.field("class_folders", class_folders,
          "the first folder in an image's path is its class; classes are numbered in sorted order (of the train split)");
  describe_image_list(v, images);
}

std::unique_ptr<Dataset> ImageFolderConfig::build(Split split) const {
  const auto has_folder = [&](std::string_view name) { return fs::is_directory(fs::path(folder) / name); };
  const auto splits = split_choices();
  const bool split_folders = std::any_of(splits.begin(), splits.end(), [&](const auto& choice) { return has_folder(choice.name); });
  const std::string_view name = name_of(split), first = name_of(Split::train);
  if (split_folders && !has_folder(name)) fail<DataError>("{} has split folders, but no '{}'", folder, name);
  const fs::path root = split_folders ? fs::path(folder) / name : fs::path(folder);

  const FolderRows metadata = read_metadata(root);
  std::vector<std::string> classes;
  if (class_folders) classes = list_class_folders(has_folder(first) ? fs::path(folder) / first : root);
  std::vector<ImageEntry> entries;
  for (const fs::path& file : list_images(root)) {
    ImageEntry entry{static_cast<int64_t>(entries.size()), root / file, file.string(), {}};
    if (const auto found = metadata.find(entry.name); found != metadata.end()) {
      entry.captions = found->second.captions;
      entry.aesthetic = found->second.aesthetic;
      entry.label = found->second.label;
    } else if (const fs::path text = fs::path(entry.path).replace_extension(".txt"); fs::exists(text)) {
      entry.captions = read_caption_file(text);
    }
    if (class_folders) entry.label = class_of_path(file, classes, root);
    if (entry.captions.empty() && require_captions)
      fail<DataError>("{}: no caption: write {} or a line of metadata.jsonl, or set data.require_captions: false",
                      entry.path.string(), fs::path(entry.path).replace_extension(".txt").filename().string());
    entries.push_back(std::move(entry));
  }
  if (!split_folders) entries = entries_of_split(std::move(entries), split, images);
  return make_image_list(std::move(entries), images, fmt::format("image folder {} {}", folder, name), std::move(classes));
}

}  // namespace fewstep
