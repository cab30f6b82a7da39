#include "src/models/lora_names.h"

#include <algorithm>

#include "src/base/error.h"

namespace fewstep::models {
namespace {

constexpr std::string_view kKohyaRoot = "lora_unet_";  // also of transformers (ComfyUI, sd-scripts, diffusers)
// What stands before a layer's name in files of others; the longest that fits is taken off, and then once more.
constexpr std::string_view kLoraRoots[] = {"base_model_model_", "model_diffusion_model_", "diffusion_model_", "lycoris_", kKohyaRoot,
                                           "transformer_", "unet_"};

std::string with_underscores(std::string_view name) {
  std::string out(name);
  std::replace(out.begin(), out.end(), '.', '_');
  return out;
}

// diffusers' reader of kohya's names knows these by sgm's only ("add_embedding_linear_1" loses its number there).
constexpr std::string_view kOnlyBySgm = "add_embedding.";

}  // namespace

LoraNames::LoraNames(const std::string& component, const std::vector<std::string>& layers, std::string_view where)
    : component_(component), where_(where) {
  if (component != "unet" && component != "transformer")
    fail<ConfigError>("{}: LoRA files have names for the layers of 'unet' and 'transformer', not for '{}'", where, component);
  if (component == "unet") {
    try {
      const UnetNames blocks = UnetNames::from_ours(layers, where);
      sgm_ = blocks.table();
      sgm_clear_ = blocks.levels * (blocks.layers_per_block + 1) <= 10;
      for (int64_t i = 0; i + 1 < blocks.levels; ++i) sgm_clear_ = sgm_clear_ && blocks.up_attention[static_cast<size_t>(i)];
    } catch (const DataError& e) {
      no_sgm_ = e.what();
    }
  }
  const auto add = [&](const std::string& name, const std::string& layer) {
    const auto [it, is_new] = layers_.emplace(with_underscores(name), layer);
    if (!is_new && it->second != layer)
      fail<ConfigError>("{}: the layers '{}' and '{}' have one name in LoRA files, '{}'", where, it->second, layer, it->first);
  };
  for (const std::string& layer : layers) {
    add(layer, layer);
    if (const auto theirs = sgm_ ? sgm_->theirs(layer) : std::nullopt) add(*theirs, layer);
  }
}

std::string LoraNames::in_file(const std::string& layer, LoraForm form) const {
  if (!layers_.contains(with_underscores(layer))) fail<ConfigError>("{}: '{}' is no layer of the {}", where_, layer, component_);
  if (form == LoraForm::peft) return fmt::format("{}.{}", component_, layer);
  const auto theirs = sgm_ ? sgm_->theirs(layer) : std::nullopt;
  if (form == LoraForm::kohya)
    return std::string(kKohyaRoot) + with_underscores(layer.starts_with(kOnlyBySgm) && theirs ? *theirs : layer);
  if (!theirs)
    fail<ConfigError>("{}: layer '{}' has no name among sgm's blocks{}: use the names of diffusers (--kohya-names diffusers), or train with "
                      "trainer.lora.targets that leave it out",
                      where_, layer, component_ == "transformer" ? ", which are those of Stability's UNet" : no_sgm_.empty() ? "" : " (" + no_sgm_ + ")");
  return std::string(kKohyaRoot) + with_underscores(*theirs);
}

std::optional<std::string> LoraNames::layer_of(std::string_view name_in_file) const {
  std::string name = with_underscores(name_in_file);
  for (int times = 0; times < 3; ++times) {
    if (const auto it = layers_.find(name); it != layers_.end()) return it->second;
    const auto root = std::find_if(std::begin(kLoraRoots), std::end(kLoraRoots), [&](std::string_view r) { return name.starts_with(r); });
    if (root == std::end(kLoraRoots)) return std::nullopt;
    name.erase(0, root->size());
  }
  return std::nullopt;
}

std::vector<std::string> layers_with_weights(const std::vector<std::string>& tensor_names) {
  constexpr std::string_view kEnd = ".weight";
  std::vector<std::string> out;
  for (const std::string& name : tensor_names)
    if (name.ends_with(kEnd)) out.push_back(name.substr(0, name.size() - kEnd.size()));
  return out;
}

std::vector<std::string> qwen_image_layers(int64_t blocks) {
  std::vector<std::string> out = {"time_text_embed.timestep_embedder.linear_1", "time_text_embed.timestep_embedder.linear_2",
                                  "img_in", "txt_in", "norm_out.linear", "proj_out"};
  constexpr const char* kInBlock[] = {"attn.to_q",       "attn.to_k",       "attn.to_v",  "attn.to_out.0",      "attn.add_q_proj", "attn.add_k_proj",
                                      "attn.add_v_proj", "attn.to_add_out", "img_mod.1",  "img_mlp.net.0.proj", "img_mlp.net.2",   "txt_mod.1",
                                      "txt_mlp.net.0.proj", "txt_mlp.net.2"};
  for (int64_t i = 0; i < blocks; ++i)
    for (const char* layer : kInBlock) out.push_back(fmt::format("transformer_blocks.{}.{}", i, layer));
  return out;
}

}  // namespace fewstep::models
