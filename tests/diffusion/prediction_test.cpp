#include "src/diffusion/prediction.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "src/diffusion/guidance.h"
#include "src/diffusion/schedule.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"
#include "tests/support/message_of.h"
#include "tests/support/predictions.h"

namespace fewstep::diffusion {
namespace {

constexpr Prediction kAll[] = {Prediction::epsilon, Prediction::v_prediction, Prediction::sample, Prediction::flow};

struct Mixture {
  Tensor x0, noise, alpha, sigma, x;
  explicit Mixture(const ScheduleConfig& config) {
    const auto type = at::TensorOptions(at::kDouble);
    x0 = at::randn({4, 3, 2, 2}, type);
    noise = at::randn({4, 3, 2, 2}, type);
    const Schedule schedule(config);
    const Tensor t = at::tensor({3.0, 200.0, 611.0, 990.0}, type);
    alpha = schedule.alpha(t);
    sigma = schedule.sigma(t);
    x = append_dims(alpha, 4) * x0 + append_dims(sigma, 4) * noise;
  }
};

// A true target splits into what it was made of, and every form is every other form, for every kind of level.
TEST(Prediction, EveryFormIsEveryOther) {
  at::manual_seed(1);
  for (const ScheduleKind kind : {ScheduleKind::scaled_linear, ScheduleKind::cosine, ScheduleKind::flow, ScheduleKind::edm}) {
    const Mixture m({.kind = kind, .sigma_data = 0.7});
    for (const Prediction from : kAll) {
      const Tensor output = prediction_target(from, m.x0, m.noise, m.alpha, m.sigma);
      const Denoised parts = split_prediction(from, output, m.x, m.alpha, m.sigma);
      EXPECT_LT((parts.x0 - m.x0).abs().max().item<double>(), 1e-8) << name_of(kind) << " " << name_of(from);
      EXPECT_LT((parts.noise - m.noise).abs().max().item<double>(), 1e-8) << name_of(kind) << " " << name_of(from);
      for (const Prediction to : kAll) {
        const Tensor there = testing::convert_prediction(from, to, output, m.x, m.alpha, m.sigma);
        EXPECT_LT((there - prediction_target(to, m.x0, m.noise, m.alpha, m.sigma)).abs().max().item<double>(), 1e-8);
      }
    }
  }
}

// Also for outputs that are wrong: x_t = alpha x0 + sigma eps holds for what is read out of any output.
TEST(Prediction, PartsAlwaysMakeUpTheSample) {
  at::manual_seed(2);
  const Mixture m({});
  for (const Prediction p : kAll) {
    const Denoised parts = split_prediction(p, at::randn_like(m.x), m.x, m.alpha, m.sigma);
    const Tensor again = append_dims(m.alpha, 4) * parts.x0 + append_dims(m.sigma, 4) * parts.noise;
    EXPECT_LT((again - m.x).abs().max().item<double>(), 1e-10) << name_of(p);
    const Denoised one = split_prediction(p, m.noise.narrow(0, 1, 1), m.x.narrow(0, 1, 1), m.alpha[1].item<double>(), m.sigma[1].item<double>());
    const Denoised row = split_prediction(p, m.noise, m.x, m.alpha, m.sigma);
    EXPECT_LT((one.x0 - row.x0.narrow(0, 1, 1)).abs().max().item<double>(), 1e-12);
  }
}

TEST(Prediction, PureNoiseHasAnImageButForEpsilon) {
  const Tensor x = at::randn({2, 3, 2, 2}), output = at::randn({2, 3, 2, 2});
  for (const Prediction p : {Prediction::v_prediction, Prediction::sample, Prediction::flow}) {
    const Denoised parts = split_prediction(p, output, x, 0.0, 1.0);
    EXPECT_TRUE(at::isfinite(parts.x0).all().item<bool>());
    EXPECT_TRUE(at::allclose(parts.noise, x));
  }
  EXPECT_TRUE(at::equal(split_prediction(Prediction::v_prediction, output, x, 0.0, 1.0).x0, -output));
}

TEST(Prediction, VIsEdmsNetworkUpToSign) {  // c_skip = 1 / (r^2 + 1), c_out = r / sqrt(r^2 + 1), c_in = 1 / sqrt(r^2 + 1)
  const double r = 3.7;
  const Tensor y = at::randn({2, 1, 2, 2}, at::kDouble), f = at::randn({2, 1, 2, 2}, at::kDouble);
  const Tensor denoised = y / (r * r + 1) + r / std::sqrt(r * r + 1) * f;
  const double alpha = 1 / std::sqrt(r * r + 1);
  EXPECT_TRUE(at::allclose(split_prediction(Prediction::v_prediction, -f, alpha * y, alpha, r * alpha).x0, denoised));
}

TEST(Prediction, NamesAreThoseOfDiffusers) {
  for (const Prediction p : kAll) EXPECT_EQ(prediction_of(name_of(p), "x"), p);
  EXPECT_THAT(message_of<ConfigError>([] { prediction_of("v_predicton", "scheduler_config.json"); }),
              ::testing::AllOf(::testing::HasSubstr("scheduler_config.json"), ::testing::HasSubstr("v_prediction")));
}

TEST(Guidance, ScaleAndRescale) {
  at::manual_seed(3);
  const Tensor c = at::randn({3, 4, 5, 5}), u = at::randn({3, 4, 5, 5});
  EXPECT_TRUE(at::equal(guide(c, u, 1.0), c));
  EXPECT_TRUE(at::equal(guide(c, u, 0.0), u));
  EXPECT_TRUE(at::allclose(guide(c, u, 7.5), u + 7.5 * (c - u)));
  const Tensor full = guide(c, u, 7.5, 1.0);
  EXPECT_TRUE(at::allclose(full.flatten(1).std(1), c.flatten(1).std(1)));  // brought to the conditional deviation
  EXPECT_TRUE(at::allclose(guide(c, u, 7.5, 0.3), 0.3 * full + 0.7 * guide(c, u, 7.5), 1e-4, 1e-5));
}

}  // namespace
}  // namespace fewstep::diffusion
