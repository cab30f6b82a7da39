// Convolutional encoder and decoder of diffusers' autoencoders (VQModel, AutoencoderKL), with their parameter names.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "src/nn/layers.h"

namespace fewstep::models {

struct AutoencoderShape {
  int64_t in_channels = 3, out_channels = 3;
  std::vector<int64_t> block_out_channels = {64};  // one downsampling by 2 between neighbours
  int64_t layers_per_block = 1;
  int64_t latent_channels = 3;                     // of the encoder's output (twice that when double_z) and decoder's input
  int64_t norm_num_groups = 32;
  bool double_z = false;                           // AutoencoderKL: mean and log-variance
  bool mid_block_add_attention = true;
};

class ResnetBlock : public nn::Module {
 public:
  ResnetBlock(int64_t in_channels, int64_t out_channels, int64_t groups);
  Tensor operator()(const Tensor& x) const;
  // Its activations are tapped (nn::tap) as NAME.conv1, NAME.conv2 and NAME.out, the sum: what overflows float16 first.
  void set_name(const std::string& name) { tap_conv1_ = name + ".conv1", tap_conv2_ = name + ".conv2", tap_out_ = name + ".out"; }

 private:
  nn::GroupNorm norm1_, norm2_;
  nn::Conv2d conv1_, conv2_;
  std::optional<nn::Conv2d> conv_shortcut_;
  std::string tap_conv1_, tap_conv2_, tap_out_;
};

// One head over all positions; diffusers' Attention with group_norm, to_q, to_k, to_v, to_out.0.
class SpatialAttention : public nn::Module {
 public:
  SpatialAttention(int64_t channels, int64_t groups);
  Tensor operator()(const Tensor& x) const;

 private:
  nn::GroupNorm group_norm_;
  nn::Linear to_q_, to_k_, to_v_;
  nn::ModuleList<nn::Linear> to_out_;
};

class MidBlock : public nn::Module {
 public:
  MidBlock(int64_t channels, int64_t groups, bool attention);
  Tensor operator()(Tensor x) const;

 private:
  nn::ModuleList<ResnetBlock> resnets_;
  nn::ModuleList<SpatialAttention> attentions_;
};

// A stage of the encoder or decoder: residual blocks, then a change of resolution, or none at the last stage.
enum class Resample { none, down, up };
class AutoencoderStage : public nn::Module {
 public:
  struct Sampler : nn::Module {
    Sampler(int64_t channels, Resample kind);
    nn::Conv2d conv;
  };
  AutoencoderStage(int64_t in_channels, int64_t out_channels, int64_t layers, int64_t groups, Resample resample);
  Tensor operator()(Tensor x) const;

 private:
  Resample resample_;
  nn::ModuleList<ResnetBlock> resnets_;
  nn::ModuleList<Sampler> samplers_;
};

class Encoder : public nn::Module {
 public:
  explicit Encoder(const AutoencoderShape& shape);
  Tensor operator()(const Tensor& images) const;  // [B, C, H, W] -> [B, latent, H / f, W / f], f = 2^(stages - 1)
  void set_recompute(bool on) { recompute_ = on; }  // stages keep their inputs only and run again in backward

 private:
  bool recompute_ = false;
  nn::Conv2d conv_in_;
  nn::ModuleList<AutoencoderStage> down_blocks_;
  std::unique_ptr<MidBlock> mid_block_;
  nn::GroupNorm conv_norm_out_;
  nn::Conv2d conv_out_;
};

class Decoder : public nn::Module {
 public:
  explicit Decoder(const AutoencoderShape& shape);
  Tensor operator()(const Tensor& latents) const;  // [B, latent, h, w] -> [B, out, h f, w f]
  Tensor last_layer() const { return conv_out_.weight; }  // for adaptive adversarial weights
  const nn::Conv2d& out_conv() const { return conv_out_; }
  void set_recompute(bool on) { recompute_ = on; }

 private:
  bool recompute_ = false;
  nn::Conv2d conv_in_;
  nn::ModuleList<AutoencoderStage> up_blocks_;
  std::unique_ptr<MidBlock> mid_block_;
  nn::GroupNorm conv_norm_out_;
  nn::Conv2d conv_out_;
};

}  // namespace fewstep::models
