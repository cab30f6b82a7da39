// Metrics of images alone: power by frequency, cut-off objects, distance to training images.
#include <gtest/gtest.h>

#include "eval/band_power.h"
#include "eval/cut_rate.h"
#include "eval/nearest_training.h"
#include "src/base/error.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "tests/support/message_of.h"

namespace fewstep::eval {
namespace {

Tensor noise_pictures(int64_t n, int64_t size, int64_t step) {
  at::Generator generator = generator_for(5, Stream::eval, step);
  return at::randint(0, 256, {n, 1, size, size}, generator, at::kByte);
}

EvalBatch batch_of(const Tensor& images) {
  return {.images = images, .captions = {}, .labels = {}, .features = {}, .logits = {}};
}

std::map<std::string, Value> result_of(std::unique_ptr<Metric> metric, const Tensor& images) {
  for (const Tensor& part : images.split(7)) metric->add(batch_of(part));
  return metric->result();
}

TEST(BandPower, AWaveIsInItsBandAndHasItsPower) {
  const double frequencies[] = {1.0 / 32, 3.0 / 32, 7.0 / 32, 12.0 / 32};
  for (int64_t b = 0; b < 4; ++b) {
    const Tensor x = at::arange(32, at::kDouble);
    const Tensor wave = at::round(at::cos(x * (2 * M_PI * frequencies[b])) * 100 + 127).to(at::kByte).expand({1, 1, 32, 32}).contiguous();
    const Tensor power = band_power(wave)[0];
    EXPECT_EQ(power.argmax().item<int64_t>(), b);
    // Two coefficients of (amplitude / 2)^2 over the band's frequencies.
    const Tensor f = at::fft_fftfreq(32, 1.0, at::TensorOptions().dtype(at::kDouble));
    const Tensor r = at::hypot(f.unsqueeze(1), f.unsqueeze(0));
    const FrequencyBand& band = frequency_bands()[static_cast<size_t>(b)];
    const double count = at::logical_and(r.gt(band.low), r.le(band.high)).sum().item<double>();
    const double amplitude = 100.0 / 255;
    EXPECT_NEAR(power[b].item<double>() * count, 2 * amplitude * amplitude / 4, 8e-4);  // whole grey levels
  }
}

TEST(BandPower, LessDetailIsNegativeAndMoreIsPositive) {
  const Tensor real = noise_pictures(60, 32, 1), other = noise_pictures(60, 32, 2);
  const MetricContext context{.reference_images = real};
  const auto same = result_of(make_band_power(context), other);
  for (const FrequencyBand& band : frequency_bands()) {
    const Value v = same.at(fmt::format("log_power[{}]", band.name));
    EXPECT_LT(std::abs(v.value), 3 * v.ci95 + 0.02) << band.name;
  }
  const Tensor soft = at::upsample_nearest2d(at::avg_pool2d(other.to(at::kFloat), 2), {32, 32}).round().to(at::kByte);
  EXPECT_LT(result_of(make_band_power(context), soft).at("log_power[>1/4]").value, -0.5);
  const auto sharp = result_of(make_band_power({.reference_images = soft}), other);
  EXPECT_GT(sharp.at("log_power[>1/4]").value, 0.5);
  EXPECT_GT(sharp.at("log_power_error").value, same.at("log_power_error").value + 0.1);  // more is not better
  EXPECT_NE(message_of([] { make_band_power({}); }).find("'data'"), std::string::npos);
}

TEST(CutRate, CountsEachSideAndTheImageOnce) {
  Tensor images = at::zeros({10, 1, 8, 8}, at::kByte);
  images[0][0][3][0] = 200;  // left
  images[1][0][3][7] = 200;  // right
  images[2][0][0][0] = 200;  // left and top
  images[3][0][7][4] = 200;  // bottom
  images[4][0][3][3] = 200;  // inside
  images[5][0][0][5] = 20;   // below the threshold
  const auto v = result_of(make_cut_rate({}), images);
  EXPECT_DOUBLE_EQ(v.at("cut_rate").value, 0.4);
  EXPECT_DOUBLE_EQ(v.at("cut_rate[left]").value, 0.2);
  EXPECT_DOUBLE_EQ(v.at("cut_rate[right]").value, 0.1);
  EXPECT_DOUBLE_EQ(v.at("cut_rate[top]").value, 0.1);
  EXPECT_DOUBLE_EQ(v.at("cut_rate[bottom]").value, 0.1);
}

TEST(NearestTraining, CopiesAreAllNearAndUnseenImagesRarely) {
  const Tensor training = noise_pictures(200, 8, 1), reference = noise_pictures(300, 8, 2), unseen = noise_pictures(300, 8, 3);
  const MetricContext context{.reference_images = reference, .training_images = [&] { return training; }};
  EXPECT_EQ(result_of(make_nearest_training(context), training).at("nearest_training").value, 1.0);
  const Value rare = result_of(make_nearest_training(context), unseen).at("nearest_training");
  EXPECT_NEAR(rare.value, 0.05, 0.04);
  // The blocked distance is the plain one.
  const Tensor plain = at::cdist(unseen.flatten(1).to(at::kDouble), training.flatten(1).to(at::kDouble)).amin(1) / 8.0;
  EXPECT_LT((nearest_distances(unseen, training, 64).to(at::kDouble) - plain).abs().max().item<double>(), 1e-3);
}

}  // namespace
}  // namespace fewstep::eval
