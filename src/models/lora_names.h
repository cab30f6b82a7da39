// What the layers of a network are called in the LoRA files of others:
//
//   peft       unet.down_blocks.1.attentions.0....attn1.to_q   .lora_A.weight  .lora_B.weight             diffusers, PEFT
//   kohya      lora_unet_down_blocks_1_attentions_0_..._to_q   .lora_down.weight .lora_up.weight .alpha   DMD2, PCM, LCM
//   kohya_sgm  lora_unet_input_blocks_4_1_..._to_q             likewise; blocks as sgm numbers them       kohya's sd-scripts
//
// ComfyUI and diffusers read all three. Read back: any of these, also with dots in place of the underscores.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "src/models/stability_names.h"

namespace fewstep::models {

enum class LoraForm { peft, kohya, kohya_sgm };

class LoraNames {
 public:
  // component: "unet" (UNet2DConditionModel) or "transformer" (Qwen-Image); layers: the names of its layers, with dots.
  // ConfigError for other components and for layers whose names with underscores are one.
  LoraNames(const std::string& component, const std::vector<std::string>& layers, std::string_view where);

  const std::string& component() const { return component_; }
  // The name in the file, before ".lora_A.weight" or ".lora_down.weight". ConfigError when the layer has none in this form.
  std::string in_file(const std::string& layer, LoraForm form) const;
  // The layer that a file calls so, in any of the forms; nothing: none of this network.
  std::optional<std::string> layer_of(std::string_view name_in_file) const;
  // diffusers tells blocks of sgm by the beginning of their number (1 is also 10) and takes place 1 of every block for attention;
  // networks of SDXL's form pass. ComfyUI reads the others, too.
  bool sgm_blocks_are_clear_to_diffusers() const { return sgm_clear_; }

 private:
  std::string component_, where_, no_sgm_;  // why there is no table of sgm
  std::optional<NameTable> sgm_ = {};
  bool sgm_clear_ = true;
  std::unordered_map<std::string, std::string> layers_;  // with underscores, in both spellings -> the layer
};

// The layers among the names of a network's tensors: those that have a weight.
std::vector<std::string> layers_with_weights(const std::vector<std::string>& tensor_names);
// The linear layers of QwenImageTransformer2DModel: 14 a block and 6 around them.
std::vector<std::string> qwen_image_layers(int64_t blocks = 60);

}  // namespace fewstep::models
