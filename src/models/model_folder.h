// A model folder as diffusers lays it out: model_index.json and one folder for each component.
#pragma once
#include <filesystem>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/json.h"

namespace fewstep::models {

// The folder that holds model_index.json for whatever a user names:
//   a model folder itself; a checkpoint folder (its model/); a run folder (its latest whole checkpoint);
//   a checkpoint in a single .safetensors file: unpacked into cache_folder()/models/<SHA-256>, once.
// DataError for everything else, with what was expected.
std::filesystem::path as_model_folder(const std::filesystem::path& path);

// The folder of a network (config.json in it) for whatever a user names: that folder itself, or what as_model_folder() takes,
// or any folder that holds it as one of `names` ({"vae"}; the first that is there). DataError says what was looked for.
std::filesystem::path component_folder(const std::filesystem::path& path, std::initializer_list<std::string_view> names);

struct ModelComponent {
  std::string name;                // of the folder: "unet"
  std::string library, class_name; // of model_index.json: "diffusers", "UNet2DConditionModel"
  std::filesystem::path folder;
};
struct ModelFolder {
  std::filesystem::path path;
  Json index;                              // model_index.json
  std::vector<ModelComponent> components;  // in the order of the index; entries without a folder are left out
  const ModelComponent* find(std::string_view name) const;  // nullptr: not there
};
ModelFolder read_model_folder(const std::filesystem::path& path);  // DataError when model_index.json is missing or malformed

// All files below `folder` relative to it, sorted.
std::vector<std::filesystem::path> files_below(const std::filesystem::path& folder);
// A hard link where the file system can, else a copy. DataError naming both. Files are only ever replaced, never written into.
void place_file(const std::filesystem::path& from, const std::filesystem::path& to);

// $FEWSTEP_CACHE, or fewstep in $XDG_CACHE_HOME or in ~/.cache.
std::filesystem::path cache_folder();

}  // namespace fewstep::models
