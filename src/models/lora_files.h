// LoRA files, read and written: one low-rank change W += alpha / r B A for every layer.
//
// What readers make of alpha differs: PEFT's names with ".alpha" are scaled by ComfyUI and not by diffusers' reader for Qwen-Image;
// kohya's names without ".alpha" end in an error there. So PEFT files carry alpha / r inside B (alpha == r, no ".alpha"), kohya's
// have ".alpha" beside every layer; the strength is the same everywhere.
#pragma once
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "src/models/lora_names.h"
#include "src/tensor/tensor.h"

namespace fewstep::nn {
class Module;
}

namespace fewstep::models {

struct LoraLayer {
  Tensor a = {}, b = {};  // A [r, in] or [r, in, k, k]; B [out, r] or [out, r, 1, 1]
  double alpha = 1;
  int64_t rank() const { return a.size(0); }
};
using LoraLayers = std::map<std::string, LoraLayer>;  // by the network's names of the layers

struct LoraFile {
  std::filesystem::path path;
  LoraLayers layers;
  std::map<std::string, std::string> metadata;
  std::filesystem::path scheduler = {};  // folder that came with it and holds scheduler_config.json; empty: none
};
inline constexpr const char* kLoraWeights = "pytorch_lora_weights.safetensors";  // diffusers' name
inline constexpr const char* kDistillationFile = "distillation.json";            // of a distilled student, in its model folder

// The file that `path` stands for: a LoRA file; a folder with pytorch_lora_weights.safetensors or adapter_model.safetensors; a run or
// model folder with an adapter/. DataError saying what was looked for.
std::filesystem::path find_lora(const std::filesystem::path& path);
// In any of the forms of LoraNames. alpha: of ".alpha", else of lora_adapter_metadata in the file, else of adapter_config.json beside it,
// else r. DataError: keys that belong to no layer (their number and the first), half a layer, ranks that differ within one, DoRA and
// rank-stabilised files.
LoraFile read_lora(const std::filesystem::path& path, const LoraNames& names);

// Tensors of a file. `dtype` is of A and B, each rounded once from float32; alpha stays float32.
TensorMap lora_tensors(const LoraLayers& layers, const LoraNames& names, LoraForm form, std::optional<at::ScalarType> dtype = {});
// "lora_adapter_metadata" of a PEFT file, a JSON: r, lora_alpha (equal) and the layers, each with the component before it.
std::string lora_adapter_metadata(const LoraLayers& layers, const std::string& component);
// sshs_legacy_hash of sd-scripts and the webui: 8 digits of the SHA-256 of 64 KiB at 1 MiB of `file`, whose metadata must be the
// ss_* keys alone. (sshs_model_hash is io::safetensors_data_sha256.)
std::string lora_legacy_hash(const std::filesystem::path& file);

// What module.state() holds with strength times the change added, computed in float32 at least; the module stays as it is. DataError
// for layers of other shapes.
TensorMap with_lora(const nn::Module& module, const LoraLayers& layers, double strength, std::string_view where);

}  // namespace fewstep::models
