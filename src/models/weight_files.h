// The weight files of one network's folder, with the names that diffusers and transformers give them: a single file, shards with
// an index, variants ("fp16").
#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/json.h"
#include "src/tensor/tensor.h"

namespace fewstep::models {

// The file (or index of shards) to open with io::Safetensors. variant "": the plain file; where there is none, the only variant.
// Both places where diffusers has put the variant's name in an index are known. DataError when there is none; it says so when
// only pickled weights (.bin) are there.
std::filesystem::path find_weights(const std::filesystem::path& folder, std::string_view variant);
bool has_weights(const std::filesystem::path& folder);
// The weight file, or the index and its shards: what has to be copied with the folder when the other variants are left out.
std::vector<std::filesystem::path> weight_files(const std::filesystem::path& folder, std::string_view variant = {});

// "diffusion_pytorch_model" for diffusers' classes (their config.json has _class_name), "model" for transformers'.
std::string weight_stem(const Json& config);

struct WeightOptions {
  std::optional<at::ScalarType> dtype = {};  // of floating-point tensors; nothing: as they are
  uint64_t max_shard_bytes = 0;              // 0: one file
  std::string variant = {};                  // in the file's name, "fp16"
};
// <stem>[.variant].safetensors, or shards <stem>[.variant]-00001-of-0000N.safetensors and <stem>.safetensors.index[.variant].json.
// One tensor at a time is converted. Same input, same bytes.
void write_weights(const std::filesystem::path& folder, const std::string& stem, const TensorMap& tensors,
                   const WeightOptions& options = {});

}  // namespace fewstep::models
