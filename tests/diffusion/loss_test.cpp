#include "src/diffusion/loss.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "src/diffusion/fixed_noise.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "src/tensor/shape.h"
#include "tests/support/predictions.h"

namespace fewstep::diffusion {
namespace {

constexpr Prediction kAll[] = {Prediction::epsilon, Prediction::v_prediction, Prediction::sample, Prediction::flow};

double weight(LossWeighting kind, Prediction p, int64_t t, const ScheduleConfig& c = {}) {
  return loss_weights({.weighting = kind}, p, Schedule(c), at::tensor({t}, at::kLong)).item<double>();
}

TEST(Loss, MinSnrFormulas) {
  const Schedule s(ScheduleConfig{});
  // SNR falls below 5 at t = 147.
  EXPECT_GE(s.snr(at::tensor({146}, at::kLong)).item<double>(), 5.0);
  EXPECT_LT(s.snr(at::tensor({147}, at::kLong)).item<double>(), 5.0);
  for (const int64_t t : {0, 100, 146, 147, 500, 999}) {
    const double snr = s.snr(at::tensor({t}, at::kLong)).item<double>(), least = std::min(snr, 5.0);
    EXPECT_NEAR(weight(LossWeighting::min_snr, Prediction::epsilon, t), least / snr, 1e-9) << t;
    EXPECT_NEAR(weight(LossWeighting::min_snr, Prediction::v_prediction, t), least / (snr + 1), 1e-9) << t;
    EXPECT_NEAR(weight(LossWeighting::min_snr, Prediction::sample, t), least, 1e-9) << t;
    EXPECT_NEAR(weight(LossWeighting::v_weight, Prediction::epsilon, t), (snr + 1) / snr, 1e-9 * (snr + 1) / snr);
    EXPECT_NEAR(weight(LossWeighting::v_weight, Prediction::sample, t), snr + 1, 1e-9 * (snr + 1));
    EXPECT_NEAR(weight(LossWeighting::eps_weight, Prediction::v_prediction, t), snr / (snr + 1), 1e-9);
    EXPECT_NEAR(weight(LossWeighting::debiased, Prediction::epsilon, t), 1 / std::sqrt(snr), 1e-9 / std::sqrt(snr));
    EXPECT_NEAR(weight(LossWeighting::edm, Prediction::sample, t), snr + 1, 1e-9 * (snr + 1));  // sigma_data = 1: the v weight
    EXPECT_EQ(weight(LossWeighting::v_weight, Prediction::v_prediction, t), 1.0);
    EXPECT_EQ(weight(LossWeighting::none, Prediction::sample, t), 1.0);
  }
  EXPECT_EQ(weight(LossWeighting::min_snr, Prediction::epsilon, 147), 1.0);
}

// One name is one loss: the weighted error of the same denoiser is the same number in every form.
TEST(Loss, WeightingsDoNotDependOnTheForm) {
  at::manual_seed(1);
  for (const ScheduleKind kind : {ScheduleKind::scaled_linear, ScheduleKind::flow, ScheduleKind::edm}) {
    const Schedule s({.kind = kind, .sigma_data = 0.6});
    const auto type = at::TensorOptions(at::kDouble);
    const Tensor t = s.discrete() ? at::tensor({30, 147, 500, 980}, at::kLong) : at::tensor({430.0, 500.0, 640.5, 880.0}, type);
    const Tensor x0 = at::randn({4, 2, 3, 3}, type), noise = at::randn_like(x0), guess = x0 + 0.3 * at::randn_like(x0);
    const Tensor x = add_noise(s, x0, noise, t), alpha = s.alpha(t), sigma = s.sigma(t);
    for (const LossWeighting w : {LossWeighting::min_snr, LossWeighting::v_weight, LossWeighting::eps_weight, LossWeighting::debiased, LossWeighting::edm}) {
      if (w == LossWeighting::v_weight && kind == ScheduleKind::edm) continue;  // v is not weighted 1 where alpha^2 + sigma^2 is not 1
      Tensor first;
      for (const Prediction p : kAll) {
        const Tensor output = testing::convert_prediction(Prediction::sample, p, guess, x, alpha, sigma);
        const Tensor loss = diffusion_loss({.weighting = w}, p, s, output, prediction_target(p, x0, noise, alpha, sigma), t);
        if (!first.defined()) first = loss;
        if (w == LossWeighting::v_weight && p == Prediction::v_prediction && kind == ScheduleKind::flow) continue;
        EXPECT_TRUE(at::allclose(loss, first, 1e-7)) << name_of(kind) << " " << static_cast<int>(w) << " " << name_of(p) << "\n" << loss << first;
      }
    }
  }
}

TEST(Loss, WeightsAreFiniteAtAZeroTerminalSnr) {
  ScheduleConfig c;
  c.zero_terminal_snr = true;
  for (const LossWeighting w : {LossWeighting::none, LossWeighting::min_snr, LossWeighting::v_weight, LossWeighting::eps_weight, LossWeighting::debiased, LossWeighting::edm})
    for (const Prediction p : kAll)
      for (const int64_t t : {0, 999}) {
        const double value = weight(w, p, t, c);
        EXPECT_TRUE(std::isfinite(value) && value > 0) << static_cast<int>(w) << name_of(p) << t << ": " << value;
      }
  EXPECT_EQ(weight(LossWeighting::min_snr, Prediction::epsilon, 999, c), 1.0);
  const double flow_end = loss_weights({.weighting = LossWeighting::min_snr}, Prediction::flow, Schedule({.kind = ScheduleKind::flow}), at::tensor({0.0, 1000.0})).max().item<double>();
  EXPECT_TRUE(std::isfinite(flow_end));
}

TEST(Loss, PlainIsTheMeanSquare) {
  const Tensor output = at::randn({3, 2, 4, 4}), target = at::randn({3, 2, 4, 4}), t = at::tensor({5, 600, 999}, at::kLong);
  const Tensor loss = diffusion_loss({}, Prediction::epsilon, Schedule({}), output, target, t);
  EXPECT_TRUE(at::allclose(loss, (output - target).square().mean({1, 2, 3})));
  EXPECT_EQ(loss.sizes(), at::IntArrayRef({3}));
}

TEST(Loss, HuberIsSquareNearAndLinearFar) {
  const Schedule s(ScheduleConfig{});
  const Tensor target = at::zeros({1, 1, 1, 1}, at::kDouble), t = at::tensor({400}, at::kLong);
  const auto at_error = [&](double e, HuberKind kind, const Tensor& when) {
    return diffusion_loss({.huber = kind, .huber_c = 0.1}, Prediction::epsilon, s, at::full({1, 1, 1, 1}, e, at::kDouble), target, when).item<double>();
  };
  EXPECT_NEAR(at_error(1e-3, HuberKind::constant, t), 1e-6, 1e-9);
  EXPECT_NEAR(at_error(100.0, HuberKind::constant, t), 2 * 0.1 * (100.0 - 0.1), 1e-4);
  // The width shrinks from 1 to c with t, or from 1 to c with the noise.
  const Tensor first = at::tensor({0}, at::kLong), last = at::tensor({999}, at::kLong);
  EXPECT_NEAR(at_error(100.0, HuberKind::exponential, first), 2 * (std::sqrt(10001.0) - 1), 1e-6);
  EXPECT_NEAR(at_error(100.0, HuberKind::exponential, last) / at_error(100.0, HuberKind::constant, last), 1.0, 0.01);
  const double c = 0.9 / std::pow(1 + s.noise_ratio(999), 2) + 0.1;
  EXPECT_NEAR(at_error(100.0, HuberKind::snr, last), 2 * c * (std::sqrt(1e4 + c * c) - c), 1e-6);
}

TEST(Loss, GradientReachesTheOutputOnly) {
  Tensor output = at::randn({2, 1, 2, 2}).requires_grad_(true);
  const Tensor target = at::randn({2, 1, 2, 2}), t = at::tensor({100, 900}, at::kLong);
  const Schedule s(ScheduleConfig{});
  const DiffusionLossConfig config{.weighting = LossWeighting::min_snr};
  diffusion_loss(config, Prediction::epsilon, s, output, target, t).sum().backward();
  const Tensor w = append_dims(loss_weights(config, Prediction::epsilon, s, t).to(at::kFloat), 4);
  EXPECT_TRUE(at::allclose(output.grad(), 2 * w * (output.detach() - target) / 4, 1e-5));
}

// The offset is shared by a channel's pixels, has the level's deviation, and is part of what is predicted.
TEST(Loss, NoiseOffsetStatistics) {
  const int64_t B = 2000, C = 2;
  const Tensor ids = at::arange(B), noise = normal_by_id(ids, {C, 8, 8}, 7, Stream::noise, 3);
  const Tensor offset = normal_by_id(ids, {C, 1, 1}, 7, Stream::mix, 3);
  const Tensor shifted = offset_noise(noise, offset, 0.5);
  EXPECT_TRUE(at::allclose(shifted - noise, (0.5 * offset).expand_as(noise), 1e-4, 1e-6));
  const Tensor means = shifted.mean({2, 3});  // [B, C]: variance 1 / 64 + 0.25
  EXPECT_NEAR(means.var().item<double>(), 1.0 / 64 + 0.25, 0.02);
  EXPECT_NEAR(means.mean().item<double>(), 0.0, 0.03);
  EXPECT_NEAR((shifted - means.unsqueeze(2).unsqueeze(3)).var().item<double>(), 63.0 / 64, 0.02);  // within a channel nothing changes
  EXPECT_TRUE(offset_noise(noise, offset, 0.0).is_same(noise));
  // An exact denoiser of the mixture has loss 0 only against the offset noise.
  const Schedule s(ScheduleConfig{});
  const Tensor x0 = at::randn({B, C, 8, 8}), t = at::full({B}, 700, at::kLong), x = add_noise(s, x0, shifted, t);
  const Tensor target = prediction_target(Prediction::epsilon, x0, shifted, s.alpha(t), s.sigma(t));
  const Tensor exact = testing::convert_prediction(Prediction::sample, Prediction::epsilon, x0, x, s.alpha(t), s.sigma(t));
  EXPECT_LT(diffusion_loss({}, Prediction::epsilon, s, exact, target, t).max().item<double>(), 1e-9);
  EXPECT_GT(diffusion_loss({}, Prediction::epsilon, s, exact, noise, t).mean().item<double>(), 0.2);
}

// A network that says 0 has the power of what it should say; what it is shown is keyed by the sample and its slice alone.
TEST(FixedNoiseLoss, IsTheSamplesOwnAndSpreadsOverTheSlices) {
  const Schedule s(ScheduleConfig{});
  const Tensor ids = at::arange(100, 140), x0 = normal_by_id(ids, {2, 8, 8}, 9, Stream::data, 0);
  const FixedNoise fixed{.ids = ids, .seed = 3, .levels = 4, .min = 0.2, .max = 0.6};
  const Tensor slice = ids.remainder(4);
  Tensor shown, times;
  const auto zero = [&](const Tensor& x_t, const Tensor& t) { return shown = x_t, times = t, at::zeros_like(x_t); };
  const Tensor loss = fixed_noise_loss(s, Prediction::sample, fixed, slice, x0, zero);
  EXPECT_TRUE(at::allclose(loss, x0.square().mean({1, 2, 3})));
  EXPECT_NEAR(fixed_noise_loss(s, Prediction::epsilon, fixed, slice, x0, zero).mean().item<double>(), 1, 0.05);
  const Tensor share = times.to(at::kDouble) / 1000, low = 0.2 + 0.1 * slice.to(at::kDouble);
  EXPECT_TRUE(share.ge(low - 1e-3).logical_and(share.le(low + 0.1)).all().item<bool>()) << share;
  // Alone, and in another slice: the same noise.
  const Tensor whole = shown, alpha = s.alpha(times), sigma = s.sigma(times);
  const FixedNoise one{.ids = ids.slice(0, 7, 8), .seed = 3, .levels = 4, .min = 0.2, .max = 0.6};
  fixed_noise_loss(s, Prediction::sample, one, slice.slice(0, 7, 8), x0.slice(0, 7, 8), zero);
  EXPECT_TRUE(shown.equal(whole.slice(0, 7, 8)));
  const Tensor noise = (whole[7] - alpha[7] * x0[7]) / sigma[7];
  fixed_noise_loss(s, Prediction::sample, one, (slice.slice(0, 7, 8) + 1).remainder(4), x0.slice(0, 7, 8), zero);
  EXPECT_FALSE(shown.equal(whole.slice(0, 7, 8)));
  EXPECT_TRUE(at::allclose((shown[0] - s.alpha(times)[0] * x0[7]) / s.sigma(times)[0], noise, 1e-4, 1e-4));
}

}  // namespace
}  // namespace fewstep::diffusion
