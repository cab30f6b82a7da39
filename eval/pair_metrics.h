// How far one image is from another: reconstructions from originals, a student's samples from its teacher's.
#pragma once
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "eval/names.h"
#include "src/models/lpips.h"
#include "src/tensor/tensor.h"

namespace fewstep::eval {

// 10 log10(255^2 / mean squared difference) over all pixels and channels, in dB; infinite for equal images. Both uint8
// [C, H, W] of one size.
double psnr(const Tensor& a, const Tensor& b);

inline constexpr int64_t kSsimWindow = 11;  // no side may be smaller
// SSIM (Wang, Bovik, Sheikh, Simoncelli 2004): Gaussian window of 11 pixels with sigma 1.5, K1 0.01, K2 0.03, population
// moments, only windows inside the image, the mean over channels (the paper's is of luminance alone). It is
// scikit-image's structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255,
// channel_axis). torchmetrics' structural_similarity_index_measure(data_range=255) has the same map, but its mean is
// also over windows that reach over the border into a reflection: another number, by some 0.01 for small images.
// uint8 [C, H, W]; DataError for a side below 11.
double ssim(const Tensor& a, const Tensor& b);

// LPIPS with VGG16 (src/models/lpips.h) and the name its weights earn.
class PerceptualDistance {
 public:
  static constexpr int64_t kSmallestSide = models::Lpips::kSmallestSide;
  // `vgg`: folder of VGG16, or one that has it below. `linear`: folder of the linear layers (tools/convert_weights.py);
  // empty: `lpips` in VGG16's folder, where there is one. ConfigError, DataError for anything else in them.
  PerceptualDistance(const std::filesystem::path& vgg, const std::string& name, at::Device device,
                     const std::filesystem::path& linear = {});
  // uint8 [B, 3, H, W] each -> float64 [B]. DataError for a side below 16.
  Tensor operator()(const Tensor& a, const Tensor& b) const;
  // "LPIPS[vgg16]" with torchvision's VGG16 and the published linear layers; else "perceptual[name@hash,linear=hash]",
  // without linear layers "perceptual[name@hash]".
  const std::string& metric() const { return metric_; }
  const EncoderIdentity& identity() const { return identity_; }  // of VGG16
  bool weighted() const { return lpips_->weighted(); }

 private:
  std::unique_ptr<models::Lpips> lpips_;
  EncoderIdentity identity_;
  std::string metric_;
  at::Device device_;
};

}  // namespace fewstep::eval
