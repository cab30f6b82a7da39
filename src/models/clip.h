// CLIP (Radford et al. 2021, arXiv 2103.00020) with transformers' names: text tower, image tower, both with
// projections. Also the text encoders of Stable Diffusion and SDXL (CLIPTextModel, CLIPTextModelWithProjection).
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/json.h"
#include "src/nn/layers.h"

namespace fewstep::models {

// quick_gelu: x sigmoid(1.702 x), OpenAI's weights; gelu: LAION's.
enum class ClipActivation { quick_gelu, gelu };

struct ClipTowerConfig {
  int64_t hidden_size = 512, intermediate_size = 2048, num_hidden_layers = 12, num_attention_heads = 8;
  double layer_norm_eps = 1e-5;
  ClipActivation activation = ClipActivation::quick_gelu;
};
struct ClipTextConfig : ClipTowerConfig {
  int64_t vocab_size = 49408, max_position_embeddings = 77, eos_token_id = 2, projection_dim = 512;
  bool projection = false;  // CLIPTextModelWithProjection
  static ClipTextConfig from_json(const Json& json, std::string_view where);
  Json to_json() const;
};
struct ClipVisionConfig : ClipTowerConfig {
  int64_t image_size = 224, patch_size = 32, num_channels = 3;
  ClipVisionConfig() { hidden_size = 768, intermediate_size = 3072, num_attention_heads = 12; }
  static ClipVisionConfig from_json(const Json& json, std::string_view where);
  Json to_json() const;
};
struct ClipConfig {
  ClipTextConfig text;
  ClipVisionConfig vision;
  int64_t projection_dim = 512;
  static ClipConfig from_json(const Json& json, std::string_view where);
  Json to_json() const;
};

struct ClipLayer;  // pre-norm attention and MLP, in the file of the implementation

// The layers of either tower.
class ClipEncoder : public nn::Module {
 public:
  explicit ClipEncoder(const ClipTowerConfig& config);
  ~ClipEncoder() override;
  // Hidden states: the input, then the output of every layer, each [B, L, D].
  std::vector<Tensor> operator()(const Tensor& x, bool causal) const;

 private:
  std::unique_ptr<nn::ModuleList<ClipLayer>> layers_;
};

struct ClipTextOutput {
  std::vector<Tensor> hidden_states;  // embeddings, then every layer's output, without the final norm: [B, L, D]
  Tensor last_hidden_state;           // after the final norm
  Tensor pooled;  // [B, D]: of the end token. With the historical eos_token_id 2: of the largest id.
};

class ClipTextTransformer : public nn::Module {
 public:
  explicit ClipTextTransformer(const ClipTextConfig& config);
  ClipTextOutput operator()(const Tensor& ids) const;  // int64 [B, L], L up to max_position_embeddings
  const ClipTextConfig& config() const { return config_; }

 private:
  struct Embeddings : nn::Module {
    explicit Embeddings(const ClipTextConfig& c);
    nn::Embedding token_embedding, position_embedding;
  };
  ClipTextConfig config_;
  Embeddings embeddings_;
  ClipEncoder encoder_;
  nn::LayerNorm final_layer_norm_;
};

// CLIPTextModel, and CLIPTextModelWithProjection when config.projection is set.
class ClipTextModel : public nn::Module {
 public:
  explicit ClipTextModel(const ClipTextConfig& config);
  ClipTextOutput operator()(const Tensor& ids) const { return text_model_(ids); }
  Tensor project(const Tensor& pooled) const {
    return (*text_projection_)(pooled);
  }  // [B, D] -> [B, P]; only with projection
  const ClipTextConfig& config() const { return text_model_.config(); }

 private:
  ClipTextTransformer text_model_;
  std::unique_ptr<nn::Linear> text_projection_;
};

class ClipVisionTransformer : public nn::Module {
 public:
  explicit ClipVisionTransformer(const ClipVisionConfig& config);
  Tensor operator()(const Tensor& images) const;  // float [B, 3, S, S], normalised -> pooled [B, D]

 private:
  struct Embeddings : nn::Module {
    explicit Embeddings(const ClipVisionConfig& c);
    Tensor class_embedding;
    nn::Conv2d patch_embedding;
    nn::Embedding position_embedding;
  };
  ClipVisionConfig config_;
  Embeddings embeddings_;
  nn::LayerNorm pre_layrnorm_;  // sic
  ClipEncoder encoder_;
  nn::LayerNorm post_layernorm_;
};

class ClipModel : public nn::Module {
 public:
  explicit ClipModel(const ClipConfig& config);
  const ClipConfig& config() const { return config_; }
  Tensor image_features(const Tensor& images) const;  // [B, P], not normalised
  Tensor text_features(const Tensor& ids) const;      // [B, P], not normalised
  Tensor logit_scale;                                 // scalar, the logarithm

 protected:
  void reset(at::Generator& generator) override;

 private:
  ClipConfig config_;
  ClipTextTransformer text_model_;
  ClipVisionTransformer vision_model_;
  nn::Linear visual_projection_, text_projection_;
};

// Files of text encoders whose names lack the prefix "text_model." get it; position_ids of older files are left out.
TensorMap adopt_clip_text(TensorMap tensors);

}  // namespace fewstep::models
