// LPIPS (Zhang et al. 2018, arXiv 1801.03924, version 0.1 of the weights) with VGG16: squared differences of the five stages'
// activations, each pixel's channels at unit length, weighted by a linear layer a stage, averaged over pixels, summed over stages.
#pragma once
#include <filesystem>
#include <memory>
#include <vector>

#include "src/models/vgg16.h"

namespace fewstep::models {

// The sum over stages of the distance above between activations [B, C, h, w] of any network: float64 [B]. `weights`: [1, C, 1, 1] a
// stage, or empty for 1.
Tensor stage_distance(const std::vector<Tensor>& a, const std::vector<Tensor>& b, const std::vector<Tensor>& weights = {});

class Lpips {
 public:
  static constexpr int64_t kSmallestSide = 16;  // four poolings lie before the last activation
  // `vgg`: folder of VGG16 itself. `linear`: folder of the linear layers (lin0.weight, ...; tools/convert_weights.py); empty:
  // every weight is 1, as the package's lpips=False. Frozen. ConfigError, DataError for anything else in them.
  Lpips(const std::filesystem::path& vgg, const std::filesystem::path& linear, at::Device device, at::ScalarType dtype = at::kFloat);
  // [B, 3, H, W] in [-1, 1] each -> float64 [B], differentiable in both. DataError for a side below 16.
  Tensor operator()(const Tensor& a, const Tensor& b) const;
  bool weighted() const { return !linear_.empty(); }

 private:
  std::vector<Tensor> stages(const Tensor& images) const;
  std::unique_ptr<nn::Module> module_;
  const Vgg16* vgg_ = nullptr;
  std::vector<Tensor> linear_;  // [1, C, 1, 1] a stage, or none
  at::TensorOptions options_;
};

}  // namespace fewstep::models
