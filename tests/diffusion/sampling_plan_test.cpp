#include "src/diffusion/sampling_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "tests/support/message_of.h"

namespace fewstep::diffusion {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(SamplingPlan, SpacingsOfTheTable) {  // Lin et al. 2024, Table 2, for T = 1000 and 10 steps
  const Schedule s(ScheduleConfig{});
  EXPECT_THAT(make_plan(s, {.steps = 10, .spacing = Spacing::leading, .steps_offset = 1}).timesteps, ElementsAre(901, 801, 701, 601, 501, 401, 301, 201, 101, 1));
  EXPECT_THAT(make_plan(s, {.steps = 10, .spacing = Spacing::linspace}).timesteps, ElementsAre(999, 888, 777, 666, 555, 444, 333, 222, 111, 0));
  EXPECT_THAT(make_plan(s, {.steps = 10}).timesteps, ElementsAre(999, 899, 799, 699, 599, 499, 399, 299, 199, 99));
  EXPECT_THAT(make_plan(s, {.sampler = SamplerKind::lcm, .steps = 4}).timesteps, ElementsAre(999, 759, 499, 259));
  EXPECT_THAT(make_plan(s, {.steps = 1, .spacing = Spacing::linspace}).timesteps, ElementsAre(999));
}

TEST(SamplingPlan, EveryPlanFallsFromNoiseToTheEnd) {
  for (const ScheduleConfig& c : {ScheduleConfig{}, ScheduleConfig{.zero_terminal_snr = true}, ScheduleConfig{.kind = ScheduleKind::flow, .shift = 3.0},
                                  ScheduleConfig{.kind = ScheduleKind::edm}, ScheduleConfig{.kind = ScheduleKind::cosine}}) {
    const Schedule s(c);
    for (int sampler = 0; sampler < 8; ++sampler)
      for (int spacing = 0; spacing < 5; ++spacing)
        for (const int64_t n : {1, 2, 7, 50}) {
          const auto kind = static_cast<SamplerKind>(sampler);
          const auto places = static_cast<Spacing>(spacing);
          if (places == Spacing::leading && !s.discrete()) continue;
          const SamplingPlan p = make_plan(s, {.sampler = kind, .steps = n, .spacing = places});
          ASSERT_EQ(p.steps(), n);
          ASSERT_EQ(p.alphas.size(), static_cast<size_t>(n + 1));
          ASSERT_EQ(p.sigmas.back(), 0.0);
          for (size_t i = 0; i + 1 < p.sigmas.size(); ++i) ASSERT_LT(p.sigmas[i + 1] * p.alphas[i], p.sigmas[i] * p.alphas[i + 1]) << name_of(kind) << name_of(places);
        }
  }
}

TEST(SamplingPlan, OwnRungsOfADistilledModel) {
  const Schedule s(ScheduleConfig{});
  const SamplingPlan p = make_plan(s, {.sampler = SamplerKind::lcm, .timesteps = {999, 749, 499, 249}});
  EXPECT_THAT(p.timesteps, ElementsAre(999, 749, 499, 249));
  EXPECT_EQ(p.alphas[1], s.alpha(749.0));
  const SamplingPlan two = make_plan(Schedule({.kind = ScheduleKind::flow}), {.sampler = SamplerKind::flow_euler, .timesteps = {1000.0, 715.5}});
  EXPECT_THAT(two.sigmas, ElementsAre(1.0, 0.7155, 0.0));
  EXPECT_THAT(message_of<ConfigError>([&] { make_plan(s, {.timesteps = {499, 749}}); }), HasSubstr("must fall"));
}

TEST(SamplingPlan, FlowGridsOfDistilledModels) {
  // Two steps with s = exp(ln 2.5) stretched to 0.7155; the base model's grid has 0.02 there.
  const auto sigmas = [](ScheduleConfig c, SamplingConfig sampling) {
    c.kind = ScheduleKind::flow;
    sampling.sampler = SamplerKind::flow_euler;
    return make_plan(Schedule(c), sampling).sigmas;
  };
  const double mu = std::log(2.5);
  ScheduleConfig student{.dynamic_shift = true, .base_shift = mu, .max_shift = mu, .shift_terminal = 0.7155};
  const auto two = sigmas(student, {.steps = 2, .tokens = 6889});
  EXPECT_NEAR(two[1], 0.7155, 1e-12);
  EXPECT_THAT(sigmas({.shift = 3.0}, {.steps = 4}), ElementsAre(1.0, ::testing::DoubleEq(0.9), ::testing::DoubleEq(0.75), ::testing::DoubleEq(0.5), 0.0));
}

TEST(SamplingPlan, PartsMakeUpTheWhole) {
  const Schedule s(ScheduleConfig{});
  for (const Spacing spacing : {Spacing::trailing, Spacing::karras}) {
    const SamplingPlan whole = make_plan(s, {.sampler = SamplerKind::euler, .steps = 50, .spacing = spacing});
    const double cut = cut_timestep(s, 0.8);
    EXPECT_EQ(cut, 200.0);
    const SamplingPlan base = base_part(whole, cut), rest = refiner_part(whole, cut);
    EXPECT_EQ(base.steps() + rest.steps(), 50);
    EXPECT_GE(base.timesteps.back(), 200.0);
    EXPECT_LT(rest.timesteps.front(), 200.0);
    EXPECT_EQ(base.sigmas.back(), rest.sigmas.front());  // one hands over where the other starts
    EXPECT_EQ(base.end_timestep, rest.timesteps.front());
    EXPECT_EQ(rest.first_step, base.steps());
    EXPECT_FALSE(base.at_end);
    EXPECT_TRUE(rest.at_end);
    // By noise ratio it is the same cut: sigma 0.57.
    const SamplingPlan upper = slice_plan(whole, INFINITY, s.noise_ratio(cut)), lower = slice_plan(whole, s.noise_ratio(cut), 0.0);
    EXPECT_EQ(upper.timesteps, base.timesteps);
    EXPECT_EQ(lower.timesteps, rest.timesteps);
    // By steps it would not be: Karras has spent 31 of its 50 steps there, and an even grid 41 of 50.
    EXPECT_EQ(base.steps(), spacing == Spacing::karras ? 31 : 40);
  }
  EXPECT_EQ(base_part(make_plan(s, {}), 1001.0).steps(), 0);
}

TEST(SamplingPlan, StrengthIsANoiseLevel) {
  const Schedule s(ScheduleConfig{});
  const SamplingPlan p = refiner_part(make_plan(s, {.steps = 50}), cut_timestep(s, 1.0 - 0.3));
  EXPECT_EQ(p.steps(), 15);
  EXPECT_EQ(p.timesteps.front(), 299.0);
  EXPECT_EQ(initial_scale(p), 1.0);
}

TEST(SamplingPlan, ContinuesFromAnyLevel) {
  for (const ScheduleConfig& c : {ScheduleConfig{}, ScheduleConfig{.kind = ScheduleKind::flow}, ScheduleConfig{.kind = ScheduleKind::edm}}) {
    const Schedule s(c);
    const SamplingPlan plan = make_plan(s, {.steps = 30, .spacing = Spacing::karras}), on = continue_plan(s, plan, 0.6);
    EXPECT_NEAR(on.ratio(0), 0.6, 1e-12);
    EXPECT_NEAR(s.noise_ratio(on.timesteps[0]), 0.6, 1e-9);
    EXPECT_LT(on.ratio(1), 0.6);
    EXPECT_EQ(on.sigmas.back(), 0.0);
    EXPECT_EQ(on.sigmas.size(), on.timesteps.size() + 1);
    EXPECT_EQ(continue_plan(s, plan, 1e-5).steps(), 1);
    // At a level of the plan nothing is doubled.
    EXPECT_EQ(continue_plan(s, plan, plan.ratio(10)).steps(), 20);
  }
}

TEST(SamplingPlan, InitialScaleIsThatOfDiffusers) {
  const Schedule s(ScheduleConfig{});
  const double a = s.alpha(999.0);
  // k-diffusion starts from sigma z with trailing and linspace: sigma alpha in our variance; and from sqrt(sigma^2 + 1) z else.
  EXPECT_NEAR(initial_scale(make_plan(s, {.sampler = SamplerKind::euler, .steps = 10})), s.noise_ratio(999) * a, 1e-12);
  EXPECT_EQ(initial_scale(make_plan(s, {.sampler = SamplerKind::euler, .steps = 10, .spacing = Spacing::leading})), 1.0);
  EXPECT_EQ(initial_scale(make_plan(s, {.sampler = SamplerKind::ddim, .steps = 10})), 1.0);
  EXPECT_EQ(initial_scale(make_plan(Schedule({.kind = ScheduleKind::flow}), {.sampler = SamplerKind::flow_euler})), 1.0);
}

TEST(SamplingPlan, WhatTheScheduleCannotGiveIsRefused) {
  const Schedule s(ScheduleConfig{}), flow({.kind = ScheduleKind::flow});
  EXPECT_THAT(message_of<ConfigError>([&] { make_plan(s, {.steps = 1001}); }), HasSubstr("1001"));
  EXPECT_THAT(message_of<ConfigError>([&] { make_plan(s, {.steps = 1000, .spacing = Spacing::leading, .steps_offset = 1}); }), HasSubstr("steps_offset"));
  EXPECT_THAT(message_of<ConfigError>([&] { make_plan(flow, {.spacing = Spacing::leading}); }), HasSubstr("leading"));
  EXPECT_THAT(message_of<ConfigError>([&] { make_plan(s, {.sampler = SamplerKind::lcm, .steps = 60}); }), HasSubstr("original_steps"));
  EXPECT_THAT(message_of<ConfigError>([&] { cut_timestep(s, 1.2); }), HasSubstr("1.2"));
}

}  // namespace
}  // namespace fewstep::diffusion
