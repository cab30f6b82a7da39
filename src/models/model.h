// What models offer to each other, and the table from a class name in config.json to its network.
#pragma once
#include <filesystem>
#include <memory>
#include <span>
#include <string_view>

#include "src/base/json.h"
#include "src/nn/module.h"

namespace fewstep::models {

struct ModelKind {
  std::string_view name;  // `_class_name`, or the first of `architectures`, in config.json
  std::unique_ptr<nn::Module> (*build)(const Json& config);  // uninitialised, with the current BuildScope
  // `fewstep model verify`: outputs by the names of `expected.*`, from `input.*` and the arguments of case.json.
  TensorMap (*reference_outputs)(nn::Module& module, const TensorMap& inputs, const Json& arguments, bool gradients);
  // Brings the names of other files of the same network to ours; nullptr: there are no others.
  TensorMap (*adopt)(TensorMap tensors) = nullptr;
};
std::span<const ModelKind> model_kinds();
std::string class_name_of(const Json& config);  // "" when none of the known keys is there
const ModelKind& find_model_kind(const Json& config, std::string_view where);

// The weight file of `folder`: single or index of shards, transformers' or diffusers' name. DataError when there is none.
std::filesystem::path find_weights(const std::filesystem::path& folder);
// config.json + safetensors (single or sharded) in `folder` -> network with weights, in eval mode.
std::unique_ptr<nn::Module> load_model(const std::filesystem::path& folder);
// Writes config.json and model.safetensors (transformers) or diffusion_pytorch_model.safetensors (diffusers classes).
void save_model(const std::filesystem::path& folder, const nn::Module& module, const Json& config);
void save_model(const std::filesystem::path& folder, const TensorMap& state, const Json& config);  // of a module's state()

}  // namespace fewstep::models
