// The denoising network of latent diffusion (Rombach et al. 2021, arXiv 2112.10752; SDXL, arXiv 2307.01952, section 2.1 and
// 2.2) in the form and with the parameter names of diffusers' `UNet2DConditionModel`.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>

#include "src/models/unet2d_blocks.h"
#include "src/models/unet2d_config.h"

namespace fewstep::models {

// What the network is told beside sample and timestep; B rows each.
struct UNetConditions {
  Tensor context;  // [B, L, cross_attention_dim]; undefined for networks without cross attention
  Tensor pooled;   // [B, P] text embedding of text_time; undefined: P = 0
  Tensor numbers;  // [B, n]: sizes, crops, aesthetic score as they are; embedded by float32 sinusoids. Undefined: n = 0
  Tensor number_mask;  // float32 [B, n], multiplies each number's sinusoid: 0 where a number was dropped. Undefined: all ones
};

// Sinusoids of `values` [...] -> float32 [..., dim] in float32, as diffusers' get_timestep_embedding: integers above 256 would
// already be rounded in bfloat16.
Tensor sinusoids(const Tensor& values, int64_t dim, bool flip_sin_to_cos, int64_t freq_shift);

class UNet2DConditionModel : public nn::Module {
 public:
  explicit UNet2DConditionModel(const UNet2DConfig& config);
  const UNet2DConfig& config() const { return config_; }

  // sample [B, C, H, W] of any size; timesteps [B] (or one for all rows), integer or real -> [B, out_channels, H, W].
  // Error when a condition is missing, not wanted, or has another shape.
  // Taps: time_emb [B, E] (time alone), add_emb [B, E], mid_block [B, C, h, w].
  Tensor operator()(const Tensor& sample, const Tensor& timesteps, const UNetConditions& conditions) const;
  // In training residual and transformer blocks keep their inputs only, and run again in backward.
  void set_recompute(bool on) { recompute_ = on; }
  // Of one image: multiplications and additions of convolutions, linear layers and attention, forward.
  double forward_flops(int64_t height, int64_t width, int64_t context_length) const;

 protected:
  // From-scratch training: PyTorch's defaults, and zero for what ends a branch (conv2 of residual blocks, proj_out of
  // transformers) and for conv_out, as sgm's zero_module: every branch starts as the identity and the output as 0.
  void reset(at::Generator& generator) override;

 private:
  struct TimestepEmbedding : nn::Module {  // linear_2(silu(linear_1(x)))
    TimestepEmbedding(int64_t in_features, int64_t dim);
    Tensor operator()(const Tensor& x) const;
    nn::Linear linear_1, linear_2;
  };
  Tensor embedding(const Tensor& timesteps, int64_t batch, const UNetConditions& conditions) const;  // [B, E]
  Tensor additions(const UNetConditions& conditions) const;                                          // [B, E]
  void check(const Tensor& sample, const UNetConditions& conditions) const;

  UNet2DConfig config_;
  bool recompute_ = false;
  nn::Conv2d conv_in_;
  TimestepEmbedding time_embedding_;
  std::optional<TimestepEmbedding> add_embedding_;
  nn::ModuleList<UnetStage> down_blocks_, up_blocks_;
  std::unique_ptr<UnetMidBlock> mid_block_;
  nn::GroupNorm conv_norm_out_;
  nn::Conv2d conv_out_;
};

}  // namespace fewstep::models
