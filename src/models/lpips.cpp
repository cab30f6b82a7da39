#include "src/models/lpips.h"

#include "src/base/error.h"
#include "src/io/safetensors.h"
#include "src/models/model.h"
#include "src/tensor/ops.h"

namespace fewstep::models {
namespace fs = std::filesystem;
namespace {

// The package's scaling layer: about ImageNet's mean and deviation for images in [-1, 1].
Tensor lpips_scaled(const Tensor& x) {
  const auto column = [&](double r, double g, double b) {
    return at::tensor({r, g, b}, at::kDouble).to(x.device(), x.scalar_type()).view({3, 1, 1});
  };
  return (x - column(-0.030, -0.088, -0.188)) / column(0.458, 0.448, 0.450);
}

// Where no channel is active, as ReLU may leave it, the root has no gradient: the clamp makes it 0 and changes no value.
Tensor unit_channels(const Tensor& x) { return x / (x.square().sum(1, /*keepdim=*/true).clamp_min(1e-20).sqrt() + 1e-10); }

// One weight a channel of each stage, negative ones refused: the published layers were trained to have none.
std::vector<Tensor> read_linear(const fs::path& folder, int64_t channel_divisor, const at::TensorOptions& options) {
  constexpr int64_t kChannels[] = {64, 128, 256, 512, 512};
  const fs::path file = find_weights(folder);
  const io::Safetensors weights(file);
  std::vector<Tensor> linear;
  for (size_t k = 0; k < std::size(kChannels); ++k) {
    const std::string name = fmt::format("lin{}.weight", k);
    if (!weights.contains(name))
      fail<DataError>("{}: no tensor {}; five linear layers are needed", file.string(), name);
    const Tensor w = weights.get(name).to(at::kFloat).flatten();
    const int64_t channels = kChannels[k] / channel_divisor;
    if (w.size(0) != channels)
      fail<DataError>("{}: {} has {} weights, the network's stage {} channels", file.string(), name, w.size(0),
                      channels);
    if (!at::isfinite(w).all().item<bool>() || w.min().item<float>() < 0)
      fail<DataError>("{}: {} has weights below 0 or not finite", file.string(), name);
    linear.push_back(w.to(options).clone().view({1, channels, 1, 1}));
  }
  return linear;
}

}  // namespace

Tensor stage_distance(const std::vector<Tensor>& a, const std::vector<Tensor>& b, const std::vector<Tensor>& weights) {
  Tensor sum;
  for (size_t k = 0; k < a.size(); ++k) {
    Tensor d = (unit_channels(a[k]) - unit_channels(b[k])).square();  // [B, C, h, w]
    if (!weights.empty()) d = d * weights[k];
    const Tensor of_stage = d.sum(1).mean({1, 2}, /*keepdim=*/false, at::kDouble);
    sum = sum.defined() ? sum + of_stage : of_stage;
  }
  return sum;
}

Lpips::Lpips(const fs::path& vgg, const fs::path& linear, at::Device device, at::ScalarType dtype)
    : module_(load_model(vgg)), vgg_(dynamic_cast<const Vgg16*>(module_.get())),
      options_(at::TensorOptions(device).dtype(dtype)) {
  if (vgg_ == nullptr) fail<ConfigError>("{}: LPIPS needs VGG16, found another network", vgg.string());
  module_->to(device);
  module_->to(dtype);
  module_->requires_grad(false);
  if (!linear.empty()) linear_ = read_linear(linear, vgg_->config().channel_divisor, options_);
}

std::vector<Tensor> Lpips::stages(const Tensor& images) const {
  if (images.dim() != 4 || images.size(1) != 3 || std::min(images.size(2), images.size(3)) < kSmallestSide)
    fail<DataError>("a perceptual distance reads [B, 3, H, W] with sides of {} pixels or more, got [{}]", kSmallestSide,
                    c10::str(images.sizes()));
  return vgg_->stages(lpips_scaled(images.to(options_)));
}

Tensor Lpips::operator()(const Tensor& a, const Tensor& b) const { return stage_distance(stages(a), stages(b), linear_); }

}  // namespace fewstep::models
