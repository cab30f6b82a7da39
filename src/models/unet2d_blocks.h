// Blocks of the UNet of latent diffusion with diffusers' parameter names: ResnetBlock2D, Transformer2DModel with
// BasicTransformerBlock, the (CrossAttn)Down/UpBlock2D levels and the mid block.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "src/models/unet2d_config.h"
#include "src/nn/layers.h"

namespace fewstep::models {

// What every block of one forward pass sees.
struct UnetPass {
  Tensor emb;      // [B, E], after its SiLU: diffusers applies it in each residual block, to the same effect
  Tensor context;  // [B, L, D] or undefined
  bool recompute = false;
};

// norm1 silu conv1 (+ time) norm2 silu conv2, beside the identity or a 1 x 1 convolution.
class UnetResnet : public nn::Module {
 public:
  UnetResnet(int64_t in_channels, int64_t out_channels, const UNet2DConfig& config);
  // x [B, C, H, W], skip [B, C', H, W] or undefined: joined on channels to in_channels.
  Tensor operator()(const Tensor& x, const Tensor& skip, const UnetPass& pass) const;
  double flops(int64_t pixels) const;

 protected:
  void reset(at::Generator& generator) override;  // conv2 is 0, as sgm's zero_module

 private:
  Tensor run(const Tensor& x, const Tensor& emb) const;
  bool scale_shift_;
  nn::GroupNorm norm1_, norm2_;
  nn::Conv2d conv1_, conv2_;
  nn::Linear time_emb_proj_;
  std::optional<nn::Conv2d> conv_shortcut_;
};

// Multi-head attention of tokens to themselves or to a context [B, L, D]. Tokens are [B N, C] throughout: linear layers of
// two-dimensional tensors are one product without views.
class UnetAttention : public nn::Module {
 public:
  UnetAttention(int64_t channels, int64_t context_dim, int64_t heads);
  Tensor operator()(const Tensor& x, const Tensor& context, int64_t batch) const;

 private:
  int64_t heads_;
  nn::Linear to_q_, to_k_, to_v_;
  nn::ModuleList<nn::Linear> to_out_;
};

// Linear, GEGLU (Shazeer 2020, arXiv 2002.05202), linear: ff.net.0.proj and ff.net.2.
class UnetFeedForward : public nn::Module {
 public:
  explicit UnetFeedForward(int64_t channels);
  Tensor operator()(const Tensor& x) const;

 private:
  struct Gate : nn::Module {
    Gate(int64_t in_features, int64_t out_features);
    nn::Linear proj;
  };
  struct Net : nn::Module {
    explicit Net(int64_t channels);
    Gate first;
    nn::Linear last;
  };
  Net net_;
};

class UnetTransformerBlock : public nn::Module {
 public:
  UnetTransformerBlock(int64_t channels, int64_t context_dim, int64_t heads);
  Tensor operator()(const Tensor& x, const Tensor& context, int64_t batch) const;  // [B N, C]

 private:
  nn::LayerNorm norm1_, norm2_, norm3_;
  UnetAttention attn1_, attn2_;
  UnetFeedForward ff_;
};

class UnetTransformer : public nn::Module {
 public:
  UnetTransformer(int64_t channels, int64_t heads, int64_t depth, const UNet2DConfig& config);
  Tensor operator()(const Tensor& x, const UnetPass& pass) const;  // [B, C, H, W]
  double flops(int64_t pixels, int64_t context_length) const;

 protected:
  void reset(at::Generator& generator) override;  // proj_out is 0

 private:
  // Modules that run again together; not part of the tree.
  struct Part : nn::Module {
    using nn::Module::child;
  };
  void make_parts();
  Tensor enter(const Tensor& x) const;                        // [B, C, H, W] -> [B H W, C]
  Tensor leave(const Tensor& tokens, const Tensor& x) const;  // back, plus x
  Tensor run_part(size_t index, const Tensor& tokens, const Tensor& x, const Tensor& context) const;
  int64_t channels_, context_dim_;
  nn::GroupNorm norm_;
  std::optional<nn::Linear> linear_in_, linear_out_;
  std::optional<nn::Conv2d> conv_in_, conv_out_;
  nn::ModuleList<UnetTransformerBlock> transformer_blocks_;
  std::vector<std::unique_ptr<Part>> parts_;  // one a block, the first with the way in, the last with the way out
};

// A level on the way down or up: residual blocks, each followed by a transformer in the CrossAttn kinds, then a change of
// resolution.
enum class UnetResample { none, down, up };
struct UnetStageShape {
  std::vector<int64_t> inputs;  // channels into each residual block, skips included
  int64_t channels = 0, heads = 0, depth = 0;
  bool attention = false;
  UnetResample resample = UnetResample::none;
};
class UnetStage : public nn::Module {
 public:
  UnetStage(const UnetStageShape& shape, const UNet2DConfig& config);
  // Appends the output of every layer to `skips`.
  Tensor down(Tensor x, const UnetPass& pass, std::vector<Tensor>* skips) const;
  // Takes one of `skips` for each residual block from the end, and the size of the next for its upsampling.
  Tensor up(Tensor x, const UnetPass& pass, std::vector<Tensor>* skips) const;
  double flops(int64_t pixels, int64_t context_length) const;  // without the change of resolution
  double resample_flops(int64_t pixels) const;                 // pixels of its output
  UnetResample resample() const { return resample_; }

 private:
  struct Sampler : nn::Module {
    Sampler(int64_t channels, UnetResample kind);
    nn::Conv2d conv;
  };
  UnetResample resample_;
  nn::ModuleList<UnetTransformer> attentions_;
  nn::ModuleList<UnetResnet> resnets_;
  nn::ModuleList<Sampler> samplers_;
};

class UnetMidBlock : public nn::Module {
 public:
  explicit UnetMidBlock(const UNet2DConfig& config);
  Tensor operator()(Tensor x, const UnetPass& pass) const;
  double flops(int64_t pixels, int64_t context_length) const;

 private:
  nn::ModuleList<UnetTransformer> attentions_;
  nn::ModuleList<UnetResnet> resnets_;
};

}  // namespace fewstep::models
