// config.json values for checkpoints that come without: told from the tensors' names and shapes, the rest from the releases
// (SDXL base and refiner, Stable Diffusion 1.x) whose networks these are.
#pragma once
#include <span>
#include <string>
#include <string_view>

#include "src/base/json.h"
#include "src/tensor/tensor.h"

namespace fewstep::models {

struct StabilityRelease {
  std::string_view name;          // "sdxl-base"
  std::string_view architecture;  // modelspec.architecture
  std::string_view pipeline;      // _class_name of model_index.json
  int64_t context_width;          // cross_attention_dim
  int64_t vector_width;           // projection_class_embeddings_input_dim; 0: none
  double scaling_factor;          // of the autoencoder
  int64_t side;                   // pixels
  bool zero_null_text;            // force_zeros_for_empty_prompt
};
std::span<const StabilityRelease> stability_releases();
const StabilityRelease& stability_release(std::string_view name);

// The release whose UNet has these shapes (diffusers' names). DataError for networks known not to work (Stable Diffusion 2,
// inpainting, image conditioning) and for shapes of none.
const StabilityRelease& release_of_unet(const TensorMap& unet, std::string_view where);
const StabilityRelease& release_of_vector_width(int64_t context_width, int64_t vector_width, std::string_view where);

// Tensors by diffusers' names -> config.json as diffusers and transformers write it. DataError where the shapes do not determine
// it: heads of other than 64 channels (8 heads in Stable Diffusion 1.x), blocks that differ within a level.
Json unet_config_of(const TensorMap& unet, const StabilityRelease& release, std::string_view where);
Json vae_config_of(const TensorMap& vae, const StabilityRelease& release, std::string_view where);
Json text_config_of(const TensorMap& text, bool open_clip, std::string_view where);
// scheduler_config.json: Euler of SDXL, DDIM for 1.x. v_prediction and zero_terminal_snr change what they stand for.
Json scheduler_config_of(const StabilityRelease& release, bool v_prediction, bool zero_terminal_snr);

}  // namespace fewstep::models
