// Perceptual distance in the activations of a frozen encoder (Zhang et al. 2018, LPIPS): a ConvEncoder or ContrastiveModel
// trained here, unweighted, or VGG16 with LPIPS's linear layers.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "src/config/visitor.h"
#include "src/models/conv_encoder.h"
#include "src/models/lpips.h"
#include "src/nn/module.h"

namespace fewstep {

struct PerceptualConfig {
  std::string encoder;              // run or model folder of a `contrastive` or `classifier_encoder`, or VGG16's; empty: none
  std::vector<int64_t> stages = {0, 1, 2};
  double weight = 1.0;              // L1 distance of activations, each channel divided by its deviation on real images
};
void describe(config::Visitor& v, PerceptualConfig& c);

class PerceptualDistance {
 public:
  // `folder`: a run or model folder with a ConvEncoder or a ContrastiveModel, or the folder of VGG16 (with its linear layers in
  // lpips/, else all weights are 1), for which `stages` does not count. `examples` [N, C, H, W] give the scales, and the
  // device and dtype to compute in.
  PerceptualDistance(const std::string& folder, std::vector<int64_t> stages, const Tensor& examples);
  // Sum over the batch of the mean absolute difference, channels scaled to unit deviation, averaged over stages; with VGG16
  // of LPIPS (grey images are repeated to three channels). Gradients go to `images` only.
  Tensor sum(const Tensor& images, const Tensor& targets) const;

 private:
  std::unique_ptr<models::Lpips> lpips_;
  std::unique_ptr<nn::Module> model_;
  const models::ConvEncoder* encoder_ = nullptr;
  std::vector<int64_t> stages_;
  std::vector<Tensor> scales_;  // [1, C, 1, 1]
};

}  // namespace fewstep
