#include "src/diffusion/schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "src/tensor/ops.h"
#include "tests/support/message_of.h"

namespace fewstep::diffusion {
namespace {

TEST(Schedule, SdxlNumbers) {  // sigmas of the released model, by its paper and code
  const Schedule s(ScheduleConfig{});
  EXPECT_NEAR(s.noise_ratio(0), 0.0292, 5e-5);
  EXPECT_NEAR(s.noise_ratio(199), 0.5693, 5e-5);
  EXPECT_NEAR(s.noise_ratio(200), 0.5717, 5e-5);
  EXPECT_NEAR(s.noise_ratio(999), 14.6146, 5e-5);
  EXPECT_NEAR(std::pow(s.noise_ratio(999), -2), 0.00468, 5e-6);
  // Betas by hand, in float64.
  double product = 1.0;
  for (int i = 0; i < 1000; ++i) {
    const double root = std::sqrt(0.00085) + (std::sqrt(0.012) - std::sqrt(0.00085)) * i / 999.0;
    product *= 1.0 - root * root;
    ASSERT_NEAR(s.alpha(static_cast<double>(i)), std::sqrt(product), 2e-5 * std::sqrt(product)) << i;  // 1000 roundings to float32
  }
}

TEST(Schedule, TensorsAndNumbersAgree) {
  ScheduleConfig zero;
  zero.zero_terminal_snr = true;
  ScheduleConfig cosine{.kind = ScheduleKind::cosine}, linear{.kind = ScheduleKind::linear, .beta_start = 1e-4, .beta_end = 0.02};
  ScheduleConfig flow{.kind = ScheduleKind::flow, .shift = 3.0}, edm{.kind = ScheduleKind::edm, .sigma_data = 0.5};
  for (const ScheduleConfig& c : {ScheduleConfig{}, zero, cosine, linear, flow, edm}) {
    const Schedule s(c);
    const Tensor whole = at::tensor({0, 1, 147, 500, 998, 999}, at::kLong);
    const Tensor real = at::tensor({0.0, 0.25, 146.9, 500.5, 998.75, 999.0}, at::kDouble);
    for (const Tensor& t : {whole, real, real.to(at::kFloat)}) {
      const Tensor alpha = s.alpha(t), sigma = s.sigma(t);
      ASSERT_EQ(alpha.scalar_type(), at::kDouble);
      for (int64_t i = 0; i < t.numel(); ++i) {
        const double at_t = t[i].item<double>();
        EXPECT_NEAR(alpha[i].item<double>(), s.alpha(at_t), 1e-14) << name_of(c.kind) << " " << at_t;
        EXPECT_NEAR(sigma[i].item<double>(), s.sigma(at_t), 1e-14) << name_of(c.kind) << " " << at_t;
      }
      if (s.discrete()) {
        EXPECT_LT((alpha.square() + sigma.square() - 1.0).abs().max().item<double>(), 1e-14);
      }
    }
    // Noise rises along the axis, and the inverse is one between whole timesteps, too.
    for (double t = 0.5; t + 7.3 < s.max_timestep(); t += 7.3) {
      ASSERT_LT(s.noise_ratio(t), s.noise_ratio(t + 7.3));
      ASSERT_NEAR(s.timestep_of_ratio(s.noise_ratio(t)), t, 1e-7) << name_of(c.kind);
    }
    EXPECT_EQ(s.timestep_of_ratio(0.0), 0.0);
    EXPECT_EQ(s.timestep_of_ratio(1e9), s.discrete() || c.kind == ScheduleKind::edm ? s.max_timestep() : 1e9 / (1 + 1e9) * 1000);
  }
}

TEST(Schedule, ZeroTerminalSnr) {
  ScheduleConfig c;
  c.zero_terminal_snr = true;
  const Schedule s(c), plain(ScheduleConfig{});
  EXPECT_EQ(s.alpha(999.0), 0.0);
  EXPECT_EQ(s.sigma(999.0), 1.0);
  EXPECT_EQ(s.snr(at::tensor({999}, at::kLong)).item<double>(), 0.0);
  EXPECT_NEAR(s.noise_ratio(999), 4096.0, 1e-3);
  EXPECT_NEAR(s.alpha(0.0), plain.alpha(0.0), 1e-7);  // the clean end stays
  // Algorithm 1 is affine in sqrt(alphas_cumprod).
  const double a0 = plain.alpha(0.0), aT = plain.alpha(999.0);
  for (const double t : {100.0, 500.0, 900.0, 998.0}) EXPECT_NEAR(s.alpha(t), (plain.alpha(t) - aT) * a0 / (a0 - aT), 3e-6);
}

TEST(Schedule, FlowAndItsShift) {
  const Schedule s({.kind = ScheduleKind::flow, .shift = 2.5});
  EXPECT_EQ(s.sigma(250.0), 0.25);  // the shift moves samples, not the axis
  EXPECT_EQ(s.alpha(250.0), 0.75);
  EXPECT_TRUE(std::isinf(s.noise_ratio(1000.0)));
  EXPECT_EQ(s.timestep_of_ratio(s.noise_ratio(1000.0)), 1000.0);
  EXPECT_NEAR(s.shifted(0.501497), 0.715506, 1e-6);  // the two-step student's rung
  for (const double u : {0.0, 0.1, 0.7, 1.0}) EXPECT_NEAR(s.unshifted(s.shifted(u)), u, 1e-15);
  EXPECT_EQ(s.shift_for(0), 2.5);
  const Schedule dynamic({.kind = ScheduleKind::flow, .dynamic_shift = true, .base_shift = 0.5, .max_shift = 0.9, .base_length = 256, .max_length = 8192});
  EXPECT_NEAR(std::log(dynamic.shift_for(1024)), 0.5387096774193548, 1e-12);
  EXPECT_THAT(message_of<ConfigError>([&] { dynamic.shift_for(0); }), ::testing::HasSubstr("tokens"));
}

TEST(Schedule, EdmHasUnitVarianceAndAnAxisInLog) {
  const Schedule s({.kind = ScheduleKind::edm, .sigma_min = 0.002, .sigma_max = 80.0, .sigma_data = 0.5});
  EXPECT_NEAR(s.noise_ratio(0), 0.002, 1e-12);
  EXPECT_NEAR(s.noise_ratio(1000), 80.0, 1e-9);
  EXPECT_NEAR(s.noise_ratio(500), std::sqrt(0.002 * 80.0), 1e-12);
  for (const double t : {0.0, 333.0, 1000.0}) {
    const double a = s.alpha(t), n = s.sigma(t);
    EXPECT_NEAR(a * a * 0.25 + n * n, 1.0, 1e-14);
  }
}

TEST(Schedule, AddNoiseIsTheForwardProcess) {
  const Schedule s(ScheduleConfig{});
  const Tensor x0 = at::randn({3, 2, 4, 4}), noise = at::randn({3, 2, 4, 4}), t = at::tensor({0, 500, 999}, at::kLong);
  const Tensor x = add_noise(s, x0, noise, t);
  EXPECT_EQ(x.scalar_type(), at::kFloat);
  for (int64_t i = 0; i < 3; ++i) {
    const double at_t = t[i].item<double>();
    EXPECT_TRUE(at::allclose(x[i], s.alpha(at_t) * x0[i] + s.sigma(at_t) * noise[i], 1e-6, 1e-6));
  }
}

TEST(Schedule, SettingsThatMakeNoScheduleAreRefused) {
  const auto says = [](const ScheduleConfig& c) { return message_of<ConfigError>([&] { Schedule s(c); }); };
  EXPECT_THAT(says({.beta_start = 0.02, .beta_end = 0.01}), ::testing::HasSubstr("beta_start"));
  EXPECT_THAT(says({.kind = ScheduleKind::flow, .zero_terminal_snr = true}), ::testing::HasSubstr("zero_terminal_snr"));
  EXPECT_THAT(says({.kind = ScheduleKind::edm, .sigma_min = 2.0, .sigma_max = 1.0}), ::testing::HasSubstr("sigma_min"));
  EXPECT_THAT(says({.num_train_timesteps = 1}), ::testing::HasSubstr("num_train_timesteps"));
}

}  // namespace
}  // namespace fewstep::diffusion
