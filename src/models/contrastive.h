// A small CLIP (Radford et al. 2021, arXiv 2103.00020): ConvEncoder for images; for texts token embeddings with a masked
// mean and an MLP, or a few transformer layers before the mean.
#pragma once
#include <cstdint>
#include <memory>
#include <string_view>

#include "src/models/conv_encoder.h"

namespace fewstep::models {

struct ContrastiveConfig {
  ConvEncoderConfig image;       // its embedding_dim is the shared dimension; classes 0
  int64_t vocab_size = 256;
  int64_t pad_token_id = 0;      // ignored by the text tower
  int64_t context_length = 32;
  int64_t text_width = 64;
  int64_t text_hidden = 128;
  int64_t text_layers = 0;       // 0: mean of token embeddings; else transformer layers before the mean
  int64_t text_heads = 4;
  double initial_logit_scale = 10.0;

  static ContrastiveConfig from_json(const Json& json, std::string_view where);
  Json to_json() const;
  void validate(std::string_view where) const;
};
void describe(config::Visitor& v, ContrastiveConfig& c);  // vocabulary, padding and image sizes are set by the trainer

class ContrastiveModel : public nn::Module {
 public:
  explicit ContrastiveModel(const ContrastiveConfig& config);
  const ContrastiveConfig& config() const { return config_; }

  Tensor image_embeddings(const Tensor& images) const;  // [B, C, H, W] -> [B, E], unit length
  Tensor text_embeddings(const Tensor& ids) const;      // int64 [B, T], padded -> [B, E], unit length
  Tensor scale() const;                                 // exp(logit_scale), at most 100
  const ConvEncoder& image() const { return image_; }   // stages, features and auxiliary heads
  ConvEncoder& image() { return image_; }
  Tensor logit_scale;                                   // scalar, the logarithm

 protected:
  void reset(at::Generator& generator) override;

 private:
  struct TextLayer : nn::Module {  // pre-norm self-attention and MLP
    TextLayer(int64_t width, int64_t heads);
    Tensor operator()(const Tensor& x, const Tensor& mask) const;
    int64_t heads;
    nn::LayerNorm norm1, norm2;
    nn::Linear qkv, out, up, down;
  };
  struct Text : nn::Module {
    explicit Text(const ContrastiveConfig& c);
    Tensor operator()(const Tensor& ids, int64_t pad) const;
    nn::Embedding token_embedding;
    std::unique_ptr<nn::Embedding> position_embedding;  // with layers only
    nn::ModuleList<TextLayer> layers;
    nn::Linear up, down;
  };
  ContrastiveConfig config_;
  ConvEncoder image_;
  Text text_;
};

}  // namespace fewstep::models
