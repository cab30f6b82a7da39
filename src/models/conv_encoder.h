// A small convolutional encoder for evaluation: activations at several depths (texture) and an embedding (content),
// a class head, and auxiliary heads that regress the strength of named corruptions.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/json.h"
#include "src/config/visitor.h"
#include "src/nn/layers.h"

namespace fewstep::models {

struct ConvEncoderConfig {
  int64_t in_channels = 1, image_size = 32;
  // One entry a stage. Its first convolution has the stage's kernel and stride, further blocks are 3 x 3 with stride 1;
  // each is convolution - GroupNorm - SiLU.
  std::vector<int64_t> channels = {16, 32, 64, 64};
  std::vector<int64_t> kernels = {3, 3, 3, 3};
  std::vector<int64_t> strides = {1, 2, 2, 2};
  std::vector<int64_t> blocks = {1, 1, 2, 1};
  int64_t norm_groups = 8;
  std::vector<int64_t> feature_stages = {0, 1, 2};  // stages whose spatial means are part of the features
  int64_t embedding_dim = 64;                       // linear map of the flattened last stage; the rest of the features
  bool embedding_silu = true;                       // SiLU on the embedding
  int64_t classes = 10;                             // 0: no class head (reads the embedding)
  std::vector<std::string> auxiliary = {};          // names of the regressed corruptions; empty: no such head
  bool auxiliary_reads_embedding = true;            // else only the pooled stages: the embedding may be invariant

  int64_t feature_dim() const;                      // pooled channels + embedding_dim, at most 256
  static ConvEncoderConfig from_json(const Json& json, std::string_view where);
  Json to_json() const;
  void validate(std::string_view where) const;
};
// Of a training config; in_channels, image_size, classes and auxiliary are set by the trainer.
void describe(config::Visitor& v, ConvEncoderConfig& c);

struct ConvEncoded {
  std::vector<Tensor> stages;  // [B, C_i, H_i, W_i]
  Tensor embedding;            // [B, E]
  Tensor raw;                  // [B, feature_dim]: pooled feature stages, then the embedding
  Tensor logits;               // [B, classes]; undefined without classes
  Tensor auxiliary;            // [B, auxiliary.size()]; undefined without auxiliary heads
};

class ConvEncoder : public nn::Module {
 public:
  explicit ConvEncoder(const ConvEncoderConfig& config);
  const ConvEncoderConfig& config() const { return config_; }

  ConvEncoded operator()(const Tensor& images) const;        // [B, C, H, W] in [-1, 1]
  std::vector<Tensor> stages(const Tensor& images) const;    // every stage's activation, for perceptual losses
  // (raw - feature_shift) * feature_scale: what Frechet distance and recall read. [B, feature_dim]
  Tensor features(const Tensor& images) const;
  Tensor logits(const Tensor& images) const;                 // [B, classes]
  // Sets shift and scale from `raw` features of real images [N, feature_dim]: every feature standardised, then every depth
  // (each pooled stage, the embedding) given the same total variance, so that wide stages do not drown narrow ones.
  void calibrate(const Tensor& raw);

 protected:
  void reset(at::Generator& generator) override;

 private:
  struct Block : nn::Module {
    Block(int64_t in_channels, int64_t out_channels, int64_t kernel, int64_t stride, int64_t groups);
    nn::Conv2d conv;
    nn::GroupNorm norm;
  };
  struct Stage : nn::Module {
    nn::ModuleList<Block> blocks;
    Stage(int64_t in_channels, const ConvEncoderConfig& c, size_t index);
  };
  ConvEncoderConfig config_;
  nn::ModuleList<Stage> stages_;
  nn::Linear embedding_;
  Tensor feature_shift_, feature_scale_;  // buffers [feature_dim]
  std::unique_ptr<nn::Linear> class_head_, auxiliary_head_;
};

}  // namespace fewstep::models
