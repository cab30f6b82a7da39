// DINOv2 (Oquab et al. 2023, arXiv 2304.07193) with transformers' names: a vision transformer with layer scale, whose
// position embeddings are interpolated to the size of the image.
#pragma once
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "src/base/json.h"
#include "src/nn/layers.h"

namespace fewstep::models {

struct Dinov2Config {
  int64_t hidden_size = 768, num_hidden_layers = 12, num_attention_heads = 12, mlp_ratio = 4;
  int64_t image_size = 518, patch_size = 14, num_channels = 3;
  double layer_norm_eps = 1e-6;
  bool qkv_bias = true, use_swiglu_ffn = false;
  static Dinov2Config from_json(const Json& json, std::string_view where);
  Json to_json() const;
};

struct Dinov2Output {
  std::vector<Tensor> hidden_states;  // embeddings, then every block's output, without the final norm: [B, 1 + N, D]
  Tensor last_hidden_state;           // after the final norm
  Tensor pooled() const;              // its class token, [B, D]: the features of FD-DINOv2
};

struct Dinov2Layer;

class Dinov2Model : public nn::Module {
 public:
  explicit Dinov2Model(const Dinov2Config& config);
  ~Dinov2Model() override;
  const Dinov2Config& config() const { return config_; }
  // images: float [B, 3, H, W], normalised, sides multiples of the patch. `layers` < 0: all of them; else stops after
  // so many blocks and last_hidden_state is the final norm of that state.
  Dinov2Output operator()(const Tensor& images, int64_t layers = -1) const;
  // [1, 1 + (height / patch) (width / patch), D]: bicubic (a = -0.75), as transformers does it.
  Tensor position_embedding(int64_t height, int64_t width) const;
  Tensor norm(const Tensor& hidden) const { return layernorm_(hidden); }

 protected:
  void reset(at::Generator& generator) override;

 private:
  struct Embeddings : nn::Module {
    explicit Embeddings(const Dinov2Config& c);
    struct Patches : nn::Module {
      explicit Patches(const Dinov2Config& c);
      nn::Conv2d projection;
    };
    Tensor cls_token, mask_token, position_embeddings;
    Patches patch_embeddings;
  };
  struct Encoder;
  Dinov2Config config_;
  Embeddings embeddings_;
  std::unique_ptr<Encoder> encoder_;
  nn::LayerNorm layernorm_;
};

}  // namespace fewstep::models
