#include "src/diffusion/timestep_sampling.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "tests/support/message_of.h"

namespace fewstep::diffusion {
namespace {

const Tensor kGrid = (at::arange(20000, at::kDouble) + 0.5) / 20000.0;  // midpoints: quantiles of every law

ScheduleConfig flow_of(double shift) { return {.kind = ScheduleKind::flow, .shift = shift}; }

TEST(TimestepSampling, UniformHitsEveryTimestepEquallyOften) {
  const Tensor t = sample_timesteps({}, Schedule({}), kGrid);
  EXPECT_EQ(t.scalar_type(), at::kLong);
  EXPECT_TRUE(at::equal(t.bincount({}, 1000), at::full({1000}, 20, at::kLong)));
}

TEST(TimestepSampling, TheRefinersShare) {  // [0, 200) of 1000, exactly
  const Tensor t = sample_timesteps({.max = 0.2}, Schedule({}), kGrid);
  EXPECT_TRUE(at::equal(t.bincount(), at::full({200}, 100, at::kLong)));
  for (const TimestepLaw law : {TimestepLaw::logit_normal, TimestepLaw::mode, TimestepLaw::lognormal}) {
    const Tensor part = sample_timesteps({.kind = law, .mean = -0.5, .min = 0.1, .max = 0.2}, Schedule({}), kGrid);
    EXPECT_GE(part.min().item<int64_t>(), 100);
    EXPECT_LT(part.max().item<int64_t>(), 200);
    EXPECT_GT(std::get<0>(at::_unique(part)).numel(), 95);
  }
  for (const double shift : {1.0, 3.0}) {
    const Tensor real = sample_timesteps({.min = 0.25, .max = 0.5}, Schedule(flow_of(shift)), kGrid);
    EXPECT_GE(real.min().item<double>(), 250.0);
    EXPECT_LE(real.max().item<double>(), 500.0);
  }
}

TEST(TimestepSampling, LogitNormalHasItsMoments) {
  const Schedule s(flow_of(1.0));
  const Tensor u = sample_timesteps({.kind = TimestepLaw::logit_normal, .mean = 0.4, .std = 0.8}, s, kGrid).to(at::kDouble) / 1000.0;
  const Tensor z = (u / (1 - u)).log();
  EXPECT_NEAR(z.mean().item<double>(), 0.4, 1e-3);
  EXPECT_NEAR(z.std().item<double>(), 0.8, 1e-3);
  // A restricted range is the same law, cut: quantiles of the part are quantiles of the whole.
  const Tensor part = sample_timesteps({.kind = TimestepLaw::logit_normal, .min = 0.9, .max = 1.0}, s, kGrid).to(at::kDouble) / 1000.0;
  const double whole = 0.5 * std::erfc(std::log(0.95 / 0.05) / std::sqrt(2.0)), above = 0.5 * std::erfc(std::log(0.9 / 0.1) / std::sqrt(2.0));
  EXPECT_NEAR(part.gt(0.95).to(at::kDouble).mean().item<double>(), whole / above, 1e-3);
}

TEST(TimestepSampling, ShiftMovesTowardsNoise) {
  const Tensor plain = sample_timesteps({}, Schedule(flow_of(1.0)), kGrid), moved = sample_timesteps({}, Schedule(flow_of(3.0)), kGrid);
  EXPECT_EQ(moved.scalar_type(), at::kFloat);
  const Tensor u = plain.to(at::kDouble) / 1000.0;
  EXPECT_TRUE(at::allclose(moved.to(at::kDouble) / 1000.0, 3 * u / (1 + 2 * u), 1e-5));
}

TEST(TimestepSampling, ModeLaw) {
  const Schedule s(flow_of(1.0));
  EXPECT_TRUE(at::allclose(sample_timesteps({.kind = TimestepLaw::mode, .mode_scale = 0.0}, s, kGrid).flip(0),
                           sample_timesteps({}, s, 1.0 - kGrid), 1e-4));
  const Tensor u = sample_timesteps({.kind = TimestepLaw::mode}, s, kGrid).to(at::kDouble) / 1000.0;
  EXPECT_NEAR(u.mean().item<double>(), 0.5, 1e-3);  // symmetric
  EXPECT_GT(u.sub(0.5).abs().lt(0.1).to(at::kDouble).mean().item<double>(), 0.3);  // dense in the middle: 0.2 for uniform
  EXPECT_THAT(message_of<ConfigError>([&] { sample_timesteps({.kind = TimestepLaw::mode, .mode_scale = 2.0}, s, kGrid); }), ::testing::HasSubstr("mode_scale"));
}

TEST(TimestepSampling, LognormalIsEdms) {
  const Schedule s({.kind = ScheduleKind::edm, .sigma_min = 1e-4, .sigma_max = 1e4});
  const Tensor t = sample_timesteps({.kind = TimestepLaw::lognormal, .mean = -1.2, .std = 1.2}, s, kGrid);
  const Tensor z = (s.sigma(t) / s.alpha(t)).log();
  EXPECT_NEAR(z.mean().item<double>(), -1.2, 2e-3);
  EXPECT_NEAR(z.std().item<double>(), 1.2, 2e-3);
  // On a table: the nearest level, so that the median is the level of exp(mean).
  const Schedule table(ScheduleConfig{});
  const Tensor d = sample_timesteps({.kind = TimestepLaw::lognormal, .mean = 0.0, .std = 0.5}, table, kGrid);
  EXPECT_NEAR(d.median().item<double>(), table.timestep_of_ratio(1.0), 1.0);
}

TEST(TimestepSampling, StratifiedDrawsOneInEachSlice) {
  const int64_t B = 64;
  const Tensor ids = at::arange(1000, 1000 + B), slots = at::arange(B).flip(0);
  const Tensor u = stratify(uniform_by_id(ids, kTimestepColumns, 5, Stream::timestep, 9), slots, B);
  const Tensor t = sample_timesteps({.stratified = true}, Schedule({.num_train_timesteps = 640}), u);
  EXPECT_TRUE(at::equal(t.div(10, "floor"), slots));
}

TEST(TimestepSampling, ADrawBelongsToItsSample) {  // whatever else is in the batch
  const Tensor ids = at::tensor({4, 9, 1, 77}, at::kLong);
  const auto draw = [](const Tensor& of) { return sample_timesteps({.kind = TimestepLaw::logit_normal}, Schedule({}), uniform_by_id(of, kTimestepColumns, 5, Stream::timestep, 12)); };
  const Tensor all = draw(ids);
  EXPECT_TRUE(at::equal(all.narrow(0, 1, 2), draw(ids.narrow(0, 1, 2))));
  EXPECT_TRUE(at::equal(all.flip(0), draw(ids.flip(0))));
}

TEST(TimestepSampling, EmptySharesAreRefused) {
  EXPECT_THAT(message_of<ConfigError>([] { sample_timesteps({.min = 0.5, .max = 0.5}, Schedule({}), kGrid); }), ::testing::HasSubstr("min"));
  EXPECT_THAT(message_of<ConfigError>([] { sample_timesteps({.min = 0.55, .max = 0.58}, Schedule({.num_train_timesteps = 10}), kGrid); }),
              ::testing::HasSubstr("no whole timestep"));
}

}  // namespace
}  // namespace fewstep::diffusion
