// Perceptual distance in the activations of a frozen encoder (in the manner of Zhang et al. 2018, LPIPS, unweighted).
#pragma once
#include <memory>
#include <vector>

#include "src/models/conv_encoder.h"
#include "src/nn/module.h"

namespace fewstep {

class PerceptualDistance {
 public:
  // `folder`: a run or model folder with a ConvEncoder or a ContrastiveModel. `examples` [N, C, H, W] give the scales.
  PerceptualDistance(const std::string& folder, std::vector<int64_t> stages, const Tensor& examples);
  // Sum over the batch of the mean absolute difference, channels scaled to unit deviation, averaged over stages.
  Tensor sum(const Tensor& images, const Tensor& targets) const;

 private:
  std::unique_ptr<nn::Module> model_;
  const models::ConvEncoder* encoder_ = nullptr;
  std::vector<int64_t> stages_;
  std::vector<Tensor> scales_;  // [1, C, 1, 1]
};

}  // namespace fewstep
