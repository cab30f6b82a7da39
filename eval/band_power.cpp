#include "eval/band_power.h"

#include "src/base/error.h"
#include "src/tensor/ops.h"

namespace fewstep::eval {

std::span<const FrequencyBand> frequency_bands() {
  static constexpr FrequencyBand kBands[] = {
      {"<1/16", 0.0, 1.0 / 16}, {"1/16-1/8", 1.0 / 16, 1.0 / 8}, {"1/8-1/4", 1.0 / 8, 0.25}, {">1/4", 0.25, 1.0}};
  return kBands;
}

Tensor band_power(const Tensor& images) {
  FEW_CHECK(images.dim() == 4 && images.scalar_type() == at::kByte, "band_power: uint8 [B, C, H, W] is expected");
  const int64_t H = images.size(2), W = images.size(3);
  const Tensor grey = images.to(at::kDouble).mean(1) / 255.0;  // [B, H, W]
  const Tensor power = at::fft_fft2(grey).abs().square() / static_cast<double>(H * W * H * W);
  const auto options = at::TensorOptions().dtype(at::kDouble);
  const Tensor radius = at::hypot(at::fft_fftfreq(H, 1.0, options).unsqueeze(1), at::fft_fftfreq(W, 1.0, options).unsqueeze(0));
  std::vector<Tensor> bands;
  for (const FrequencyBand& band : frequency_bands()) {
    const Tensor inside = at::logical_and(radius.gt(band.low), radius.le(band.high)).to(at::kDouble);  // [H, W]
    const double count = inside.sum().item<double>();
    bands.push_back(count == 0 ? at::zeros({images.size(0)}, options) : (power * inside).sum({1, 2}) / count);
  }
  return at::stack(bands, 1);
}

namespace {

constexpr double kNoPower = 1e-12;  // far below one grey level in one pixel

class BandPowerMetric : public Metric {
 public:
  explicit BandPowerMetric(const Tensor& reference) {
    std::vector<Tensor> parts;
    for (const Tensor& part : reference.split(500)) parts.push_back(band_power(part));
    real_ = at::cat(parts).mean(0);
  }
  void add(const EvalBatch& batch) override { parts_.push_back(band_power(batch.images)); }
  std::map<std::string, Value> result() const override {
    std::map<std::string, Value> values;
    if (parts_.empty()) return values;
    const Tensor power = at::cat(parts_);  // [N, bands]
    const int64_t N = power.size(0);
    double error = 0, error_variance = 0, bands = 0;
    for (int64_t b = 0; b < power.size(1); ++b) {
      const double real = real_[b].item<double>();
      if (real < kNoPower) continue;  // images too small to have the band
      const double mean = std::max(power.select(1, b).mean().item<double>(), kNoPower);
      const double deviation = N > 1 ? power.select(1, b).std().item<double>() : 0.0;
      // d log10 m = dm / (m ln 10)
      const double half = 1.96 * deviation / (mean * std::sqrt(static_cast<double>(N)) * std::log(10.0));
      const double value = std::log10(mean / real);
      values[fmt::format("log_power[{}]", frequency_bands()[static_cast<size_t>(b)].name)] = {.value = value, .ci95 = half, .n = N};
      error += std::abs(value), error_variance += half * half, ++bands;
    }
    if (bands > 0) values["log_power_error"] = {.value = error / bands, .ci95 = std::sqrt(error_variance) / bands, .n = N};
    return values;
  }

 private:
  Tensor real_;
  std::vector<Tensor> parts_;
};

}  // namespace

std::unique_ptr<Metric> make_band_power(const MetricContext& c) {
  if (!c.reference_images.defined()) fail<ConfigError>("metric band_power: set 'data' to real images to compare with");
  return std::make_unique<BandPowerMetric>(c.reference_images);
}

}  // namespace fewstep::eval
