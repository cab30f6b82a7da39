#include "eval/pair_metrics.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "eval/encoder.h"
#include "src/base/error.h"
#include "src/base/json.h"
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
  identity_ = identify(component, name);
  const fs::path layers = !linear.empty()                         ? linear
                          : fs::is_directory(component / "lpips") ? component / "lpips"
                                                                  : fs::path();
  const fs::path found = layers.empty() ? fs::path() : find_component(layers, {kLinearClass});
  lpips_ = std::make_unique<models::Lpips>(component, found, device);
  EncoderIdentity earned = identity_;
  earned.pipeline = "vgg16";
  if (layers.empty()) {
    metric_ = metric_name("perceptual", identity_, {}, {});
    return;
  }
  const EncoderIdentity source = identify(found, "linear");
  // Both halves make the metric: with other linear layers VGG16's own hash earns nothing.
  metric_ = source.source_sha256 == kPublishedLinear ? metric_name("perceptual", earned) : std::string();
  if (!metric_.starts_with("LPIPS"))
    metric_ = metric_name("perceptual", identity_, "linear=" + source.sha256.substr(0, 8), {});
}

Tensor PerceptualDistance::operator()(const Tensor& a, const Tensor& b) const {
  const NoGrad no_grad;
  check_pair(a, b);
  const auto floats = [&](const Tensor& x) { return x.to(device_).to(at::kFloat) / (kWhite / 2) - 1; };
  return (*lpips_)(floats(a), floats(b)).to(at::kCPU);
}

}  // namespace fewstep::eval
