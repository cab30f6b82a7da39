// The frozen network whose features a discriminator reads: a DINOv2-form transformer or a ConvEncoder, from a run or model folder.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "src/models/feature_discriminator.h"
#include "src/nn/module.h"

namespace fewstep {

class GanFeatures {
 public:
  // `folder`: a run (its newest checkpoint) or model folder of the trainers dino, classifier_encoder or contrastive, or the folder
  // of a DINOv2 checkpoint itself. `blocks` as in FeatureTapOptions; empty: the embeddings and the ends of four equal parts of a
  // transformer, all stages of a ConvEncoder. ConfigError naming `key`: no such folder, no encoder in it, no such block, or
  // a network that does not read `image_channels`. A ConvEncoder reads squares of its own size: `side` is that size, or 0.
  GanFeatures(const std::string& folder, const std::vector<int64_t>& blocks, int64_t side, int64_t image_channels, std::string_view key);
  // [B, C, H, W] in [-1, 1] -> one [B, D_i, L_i] a tap. Gradients flow to the images only.
  std::vector<Tensor> operator()(const Tensor& images) const;
  std::vector<int64_t> channels() const;
  void to(at::Device device, at::ScalarType dtype);
  double forward_flops(int64_t height, int64_t width) const;  // of one image
  Tensor sums() const;  // float64 [parameters], on the CPU: tells other weights
  std::string description() const;

 private:
  std::unique_ptr<nn::Module> module_;
  models::Dinov2Model* vit_ = nullptr;
  models::ConvEncoder* conv_ = nullptr;
  models::FeatureTapOptions options_;
};

}  // namespace fewstep
