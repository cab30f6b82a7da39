// Class labels as the context of a UNet: one learned vector a class, a sequence of one token (the class-conditional ImageNet
// configuration of SDXL, arXiv 2307.01952, section 2.2).
#pragma once
#include <cstdint>
#include <string_view>

#include "src/base/json.h"
#include "src/nn/layers.h"

namespace fewstep::models {

struct LabelEmbeddingConfig {
  int64_t num_classes = 10;
  int64_t dim = 128;  // the UNet's cross_attention_dim
  static LabelEmbeddingConfig from_json(const Json& json, std::string_view where);
  Json to_json() const;
  void validate(std::string_view where) const;
};

class LabelEmbedding : public nn::Module {
 public:
  explicit LabelEmbedding(const LabelEmbeddingConfig& config);
  const LabelEmbeddingConfig& config() const { return config_; }
  // int64 [B], 0 <= label < num_classes -> [B, 1, dim]. "No class" is a vector of zeros, as sgm drops embeddings: the caller's.
  Tensor operator()(const Tensor& labels) const;

 private:
  LabelEmbeddingConfig config_;
  nn::Embedding embedding_;  // N(0, 1), as torch.nn.Embedding
};

}  // namespace fewstep::models
