#include "eval/pair_metrics.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "eval/encoder.h"
#include "src/base/error.h"
#include "src/base/json.h"
#include "src/io/safetensors.h"
#include "src/models/model.h"
#include "src/models/vgg16.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::eval {
namespace fs = std::filesystem;
namespace {

constexpr double kWhite = 255;
// lpips/weights/v0.1/vgg.pth of the PyPI package lpips 0.1.4.
constexpr std::string_view kPublishedLinear = "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868";
constexpr const char* kLinearClass = "LPIPS linear layers";

void check_pair(const Tensor& a, const Tensor& b) {
  if (a.scalar_type() != at::kByte || b.scalar_type() != at::kByte)
    fail("images to compare must be uint8, got {} and {}", c10::toString(a.scalar_type()),
         c10::toString(b.scalar_type()));
  if (a.sizes() != b.sizes() || a.numel() == 0)
    fail<DataError>("images to compare must have one size, got [{}] and [{}]", c10::str(a.sizes()),
                    c10::str(b.sizes()));
}

// Weights of the window, sum 1.
std::vector<double> gaussian_window() {
  constexpr double kSigma = 1.5;
  std::vector<double> w;
  double sum = 0;
  for (int64_t i = 0; i < kSsimWindow; ++i) {
    const double d = static_cast<double>(i - kSsimWindow / 2) / kSigma;
    w.push_back(std::exp(-d * d / 2)), sum += w.back();
  }
  for (double& v : w) v /= sum;
  return w;
}

// Windows that lie inside: `dim` becomes shorter by 10. Shifted sums: no convolution of doubles is faster on CPUs.
Tensor blur_inside(const Tensor& x, int64_t dim, const std::vector<double>& window) {
  const int64_t n = x.size(dim) - kSsimWindow + 1;
  Tensor out = x.narrow(dim, 0, n) * window[0];
  for (size_t k = 1; k < window.size(); ++k) out.add_(x.narrow(dim, static_cast<int64_t>(k), n), window[k]);
  return out;
}

// The package's scaling layer: about ImageNet's mean and deviation for images in [-1, 1].
Tensor scaled(const Tensor& images) {
  const auto column = [&](double r, double g, double b) {
    return at::tensor({r, g, b}, at::kDouble).to(images.device(), at::kFloat).view({3, 1, 1});
  };
  const Tensor x = images.to(at::kFloat) / (kWhite / 2) - 1;
  return (x - column(-0.030, -0.088, -0.188)) / column(0.458, 0.448, 0.450);
}

Tensor unit_channels(const Tensor& x) { return x / (x.square().sum(1, /*keepdim=*/true).sqrt() + 1e-10); }

// One weight a channel of each stage, negative ones refused: the published layers were trained to have none.
std::vector<Tensor> read_linear(const fs::path& folder, int64_t channel_divisor, at::Device device) {
  constexpr int64_t kChannels[] = {64, 128, 256, 512, 512};
  const fs::path file = models::find_weights(folder);
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
    linear.push_back(w.to(device).clone().view({1, channels, 1, 1}));
  }
  return linear;
}

}  // namespace

double psnr(const Tensor& a, const Tensor& b) {
  const NoGrad no_grad;
  check_pair(a, b);
  const double error = (a.to(at::kDouble) - b.to(at::kDouble)).square().mean().item<double>();
  return 10 * std::log10(kWhite * kWhite / error);
}

double ssim(const Tensor& a, const Tensor& b) {
  const NoGrad no_grad;
  check_pair(a, b);
  const auto [C, H, W] = dims<3>(a);
  if (std::min(H, W) < kSsimWindow)
    fail<DataError>("SSIM of images of {} x {} pixels: its window is {} x {}", W, H, kSsimWindow, kSsimWindow);
  static const std::vector<double> window = gaussian_window();
  const Tensor x = a.to(at::kDouble), y = b.to(at::kDouble);
  const Tensor moments = blur_inside(blur_inside(at::stack({x, y, x * x, y * y, x * y}), 3, window), 2, window);
  const Tensor mx = moments[0], my = moments[1];
  const Tensor vx = moments[2] - mx * mx, vy = moments[3] - my * my, cov = moments[4] - mx * my;
  constexpr double C1 = 0.01 * kWhite * 0.01 * kWhite, C2 = 0.03 * kWhite * 0.03 * kWhite;
  // Equation 13.
  const Tensor s = (2 * mx * my + C1) * (2 * cov + C2) / ((mx * mx + my * my + C1) * (vx + vy + C2));
  return s.mean().item<double>();
}

PerceptualDistance::PerceptualDistance(const fs::path& vgg, const std::string& name, at::Device device,
                                       const fs::path& linear)
    : device_(device) {
  const fs::path component = find_component(vgg, {"torchvision VGG16"});
  vgg_ = models::load_model(component);
  vgg_->to(device);
  vgg_->requires_grad(false);
  identity_ = identify(component, name);
  const fs::path layers = !linear.empty()                         ? linear
                          : fs::is_directory(component / "lpips") ? component / "lpips"
                                                                  : fs::path();
  EncoderIdentity earned = identity_;
  earned.pipeline = "vgg16";
  if (layers.empty()) {
    metric_ = metric_name("perceptual", identity_, {}, {});
    return;
  }
  const fs::path found = find_component(layers, {kLinearClass});
  const int64_t divisor = dynamic_cast<const models::Vgg16&>(*vgg_).config().channel_divisor;
  linear_ = read_linear(found, divisor, device);
  const EncoderIdentity source = identify(found, "linear");
  // Both halves make the metric: with other linear layers VGG16's own hash earns nothing.
  metric_ = source.source_sha256 == kPublishedLinear ? metric_name("perceptual", earned) : std::string();
  if (!metric_.starts_with("LPIPS"))
    metric_ = metric_name("perceptual", identity_, "linear=" + source.sha256.substr(0, 8), {});
}

std::vector<Tensor> PerceptualDistance::stages(const Tensor& images) const {
  if (images.dim() != 4 || images.size(1) != 3 || std::min(images.size(2), images.size(3)) < kSmallestSide)
    fail<DataError>("a perceptual distance reads [B, 3, H, W] with sides of {} pixels or more, got [{}]", kSmallestSide,
                    c10::str(images.sizes()));
  return dynamic_cast<const models::Vgg16&>(*vgg_).stages(scaled(images.to(device_)));
}

Tensor PerceptualDistance::operator()(const Tensor& a, const Tensor& b) const {
  const NoGrad no_grad;
  check_pair(a, b);
  const std::vector<Tensor> fa = stages(a), fb = stages(b);
  Tensor sum = at::zeros({a.size(0)}, at::TensorOptions(at::kDouble));
  for (size_t k = 0; k < fa.size(); ++k) {
    Tensor d = (unit_channels(fa[k]) - unit_channels(fb[k])).square();  // [B, C, h, w]
    if (weighted()) d = d * linear_[k];
    sum += d.sum(1).mean({1, 2}, /*keepdim=*/false, at::kDouble).to(at::kCPU);
  }
  return sum;
}

}  // namespace fewstep::eval
