// Samplers against closed forms: for data N(mu, d^2) the best denoiser is known, and so is where its probability flow ends.
#include "src/diffusion/samplers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "tests/support/message_of.h"
#include "tests/support/predictions.h"

namespace fewstep::diffusion {
namespace {

constexpr double kMean = 0.7, kDeviation = 0.4;
constexpr SamplerKind kAllSamplers[] = {SamplerKind::ddpm, SamplerKind::ddim, SamplerKind::euler, SamplerKind::euler_ancestral,
                                        SamplerKind::heun, SamplerKind::dpmpp_2m, SamplerKind::lcm, SamplerKind::flow_euler};

double spread(double a, double s) { return std::sqrt(a * a * kDeviation * kDeviation + s * s); }

// E[x0 | x_t], in the form `p`, at the levels that the plan has at its timesteps.
Network exact_network(const SamplingPlan& plan, Prediction p) {
  return [&plan, p](const Tensor& x, double t) {
    size_t i = 0;
    while (i < plan.timesteps.size() && plan.timesteps[i] != t) ++i;
    const double a = plan.alphas[i], s = plan.sigmas[i], v = spread(a, s);
    const Tensor x0 = kMean + kDeviation * kDeviation * a / (v * v) * (x - a * kMean);
    const Tensor level = at::full({x.size(0)}, a, at::kDouble), noise = at::full({x.size(0)}, s, at::kDouble);
    return testing::convert_prediction(Prediction::sample, p, x0, x, level, noise);
  };
}

// Where the probability flow carries x from the plan's first level to its last.
Tensor exact_end(const SamplingPlan& plan, const Tensor& x) {
  const double a = plan.alphas.front(), s = plan.sigmas.front(), a1 = plan.alphas.back(), s1 = plan.sigmas.back();
  return a1 * kMean + spread(a1, s1) / spread(a, s) * (x - a * kMean);
}

Tensor start() { return at::linspace(-2.0, 2.0, 12, at::kDouble).view({2, 6}); }

double error_of(SamplerKind kind, const ScheduleConfig& schedule_config, int64_t n) {
  const Schedule schedule(schedule_config);
  // Evenly in ln of the noise ratio from 8 to 0.05; the last step, to no noise at all, is left out.
  const SamplingConfig config{.sampler = kind, .steps = n + 1, .spacing = Spacing::exponential, .lower_order_final = false, .sigma_min = 0.05, .sigma_max = 8.0};
  SamplingPlan whole;
  if (schedule_config.kind == ScheduleKind::flow) {  // there sigmas, not ratios, lie between the ends
    SamplingConfig sigmas = config;
    sigmas.sigma_min = 0.05;
    sigmas.sigma_max = 0.95;
    whole = make_plan(schedule, sigmas);
  } else {
    whole = make_plan(schedule, config);
  }
  const SamplingPlan plan = base_part(whole, 0.5 * (whole.timesteps[static_cast<size_t>(n)] + whole.timesteps[static_cast<size_t>(n - 1)]));
  EXPECT_EQ(plan.steps(), n);
  SamplingPlan levels = plan;  // Heun looks at the end, too
  levels.timesteps.push_back(plan.end_timestep);
  const Tensor end = sample(schedule, plan, Prediction::epsilon, config, exact_network(levels, Prediction::epsilon), start());
  return (end - exact_end(plan, start())).abs().max().item<double>();
}

TEST(Samplers, ConvergeWithTheirOrder) {
  struct Case {
    SamplerKind kind;
    double order;
  };
  for (const ScheduleKind schedule : {ScheduleKind::edm, ScheduleKind::flow})
    for (const Case c : {Case{SamplerKind::ddim, 1}, Case{SamplerKind::euler, 1}, Case{SamplerKind::flow_euler, 1}, Case{SamplerKind::heun, 2}, Case{SamplerKind::dpmpp_2m, 2}}) {
      double last = error_of(c.kind, {.kind = schedule, .sigma_min = 1e-3}, 40);
      for (const int64_t n : {80, 160, 320}) {
        const double now = error_of(c.kind, {.kind = schedule, .sigma_min = 1e-3}, n);
        EXPECT_NEAR(std::log2(last / now), c.order, 0.15) << name_of(schedule) << " " << name_of(c.kind) << " " << n << ": " << now;
        last = now;
      }
      EXPECT_LT(last, c.order == 1 ? 2e-2 : 2e-4);
    }
}

TEST(Samplers, ReachTheFlowsEndOnABetaSchedule) {  // all the way, through karras levels
  const Schedule schedule(ScheduleConfig{});
  for (const SamplerKind kind : {SamplerKind::ddim, SamplerKind::euler, SamplerKind::heun, SamplerKind::dpmpp_2m}) {
    const SamplingConfig config{.sampler = kind, .steps = 100, .spacing = Spacing::karras, .lower_order_final = false};
    SamplingPlan plan = make_plan(schedule, config);
    if (kind == SamplerKind::dpmpp_2m)  // its whole timesteps may be equal: here they only name the level
      for (size_t i = 0; i < plan.timesteps.size(); ++i) plan.timesteps[i] = 1000.0 - static_cast<double>(i);
    for (const Prediction p : {Prediction::epsilon, Prediction::v_prediction, Prediction::sample, Prediction::flow}) {
      const Tensor end = sample(schedule, plan, p, config, exact_network(plan, p), start());
      EXPECT_LT((end - exact_end(plan, start())).abs().max().item<double>(), kind == SamplerKind::ddim || kind == SamplerKind::euler ? 2e-2 : 2e-3) << name_of(kind) << name_of(p);
    }
  }
}

// With enough small steps, ancestral sampling of an exact denoiser has the data's law whatever it starts from.
TEST(Samplers, StochasticOnesKeepTheMarginal) {
  const Schedule schedule(ScheduleConfig{});
  const Tensor ids = at::arange(20000);
  for (const SamplingConfig& config : {SamplingConfig{.sampler = SamplerKind::ddpm, .steps = 250}, SamplingConfig{.sampler = SamplerKind::euler_ancestral, .steps = 250},
                                       SamplingConfig{.sampler = SamplerKind::ddim, .steps = 250, .eta = 0.6}}) {
    const SamplingPlan plan = make_plan(schedule, config);
    const NoiseSource noise = [&](int64_t step) { return normal_by_id(ids, {1}, 3, Stream::sampling, step); };
    const Tensor x = normal_by_id(ids, {1}, 3, Stream::noise, 0);
    const Tensor end = sample(schedule, plan, Prediction::v_prediction, config, exact_network(plan, Prediction::v_prediction), x, noise);
    EXPECT_EQ(end.scalar_type(), at::kFloat);
    EXPECT_NEAR(end.mean().item<double>(), kMean, 0.02) << name_of(config.sampler);
    EXPECT_NEAR(end.std().item<double>(), kDeviation, 0.02) << name_of(config.sampler);
  }
}

TEST(Samplers, OneStepWithManyNames) {
  const Schedule schedule(ScheduleConfig{});
  at::manual_seed(4);
  const Tensor outputs = at::randn({9, 2, 6}, at::kDouble), noises = at::randn({9, 2, 6}, at::kDouble);
  const auto run = [&](const SamplingConfig& config, const SamplingPlan& plan, Prediction p) {
    int64_t call = 0;
    return sample(schedule, plan, p, config, [&](const Tensor&, double) { return outputs[call++]; }, start(), [&](int64_t i) { return noises[i]; });
  };
  const SamplingPlan plan = make_plan(schedule, {.steps = 8});
  const auto close = [](const Tensor& a, const Tensor& b) { return (a - b).abs().max().item<double>() < 1e-9; };
  const Tensor ancestral = run({.sampler = SamplerKind::ddim, .eta = 1.0}, plan, Prediction::v_prediction);
  EXPECT_TRUE(close(run({.sampler = SamplerKind::ddpm}, plan, Prediction::v_prediction), ancestral));
  EXPECT_TRUE(close(run({.sampler = SamplerKind::euler_ancestral}, plan, Prediction::v_prediction), ancestral));
  EXPECT_TRUE(close(run({.sampler = SamplerKind::ddim}, plan, Prediction::v_prediction), run({.sampler = SamplerKind::euler}, plan, Prediction::v_prediction)));
  // Flow's Euler is x + (sigma' - sigma) v.
  const Schedule flow({.kind = ScheduleKind::flow, .shift = 2.0});
  const SamplingConfig config{.sampler = SamplerKind::flow_euler, .steps = 8};
  const SamplingPlan flow_plan = make_plan(flow, config);
  Tensor x = start();
  for (int64_t i = 0; i < 8; ++i) x = x + (flow_plan.sigmas[static_cast<size_t>(i + 1)] - flow_plan.sigmas[static_cast<size_t>(i)]) * outputs[i];
  EXPECT_TRUE(close(run(config, flow_plan, Prediction::flow), x));
}

// Base and refiner with one network give what the network gives by itself, bit for bit.
TEST(Samplers, AHandoverIsUninterruptedSampling) {
  for (const ScheduleConfig& c : {ScheduleConfig{}, ScheduleConfig{.kind = ScheduleKind::flow, .shift = 3.0}}) {
    const Schedule schedule(c);
    for (const SamplerKind kind : kAllSamplers)
      for (const int64_t steps : {10, 30})
        for (const double denoised : {0.0, 0.35, 0.8, 1.0}) {
          const SamplingConfig config{.sampler = kind, .steps = steps, .eta = 0.5};
          const SamplingPlan plan = make_plan(schedule, config);
          const Network network = [](const Tensor& x, double t) { return (0.3 * x + std::sin(t)).tanh(); };
          const NoiseSource noise = [](int64_t step) { return normal_by_id(at::arange(2), {6}, 1, Stream::sampling, step); };
          const Prediction p = c.kind == ScheduleKind::flow ? Prediction::flow : Prediction::v_prediction;
          const Tensor whole = sample(schedule, plan, p, config, network, start(), noise);
          const double cut = cut_timestep(schedule, denoised);
          SamplerState state;
          std::vector<int64_t> seen;
          const Observer observe = [&](int64_t step, const Tensor&) { seen.push_back(step); };
          const Tensor half = sample(schedule, base_part(plan, cut), p, config, network, start(), noise, observe, &state);
          const Tensor end = sample(schedule, refiner_part(plan, cut), p, config, network, half, noise, observe, &state);
          EXPECT_TRUE(at::equal(whole, end)) << name_of(kind) << " " << steps << " " << denoised;
          EXPECT_EQ(seen.size(), static_cast<size_t>(steps));
          for (size_t i = 0; i < seen.size(); ++i) EXPECT_EQ(seen[i], static_cast<int64_t>(i));
        }
  }
}

TEST(Samplers, LcmIsTheImageThenFreshNoise) {
  const Schedule schedule(ScheduleConfig{});
  const SamplingConfig config{.sampler = SamplerKind::lcm, .timestep_scaling = 0.0, .timesteps = {999, 749, 499, 249}};
  const SamplingPlan plan = make_plan(schedule, config);
  const Tensor x0 = at::randn({2, 6}, at::kDouble);
  std::vector<Tensor> inputs;
  int64_t draws = 0;
  const Tensor end = sample(schedule, plan, Prediction::sample, config, [&](const Tensor& x, double) { inputs.push_back(x); return x0; }, start(),
                            [&](int64_t i) { ++draws; return at::full({2, 6}, static_cast<double>(i + 1), at::kDouble); });
  EXPECT_TRUE(at::equal(end, x0));
  EXPECT_EQ(draws, 3);  // none for the last step
  for (int64_t i = 1; i < 4; ++i) {
    const double t = plan.timesteps[static_cast<size_t>(i)];
    EXPECT_TRUE(at::allclose(inputs[static_cast<size_t>(i)], schedule.alpha(t) * x0 + schedule.sigma(t) * static_cast<double>(i)));
  }
}

TEST(Samplers, NetworkCallsAreWhatEvaluationsSays) {
  const Schedule schedule(ScheduleConfig{});
  for (const SamplerKind kind : kAllSamplers)
    for (const bool clean : {true, false}) {
      const SamplingConfig config{.sampler = kind, .steps = 7, .end_clean = clean};
      const SamplingPlan plan = make_plan(schedule, config);
      int64_t calls = 0, draws = 0;
      const Tensor end = sample(schedule, plan, Prediction::epsilon, config, [&](const Tensor& x, double) { ++calls; return x; }, start(),
                                [&](int64_t) { ++draws; return at::ones({2, 6}); });
      EXPECT_EQ(calls, evaluations(plan, kind)) << name_of(kind);
      EXPECT_EQ(calls, kind == SamplerKind::heun ? (clean ? 13 : 14) : 7);
      const bool stochastic = kind == SamplerKind::ddpm || kind == SamplerKind::euler_ancestral || kind == SamplerKind::lcm;
      EXPECT_EQ(draws > 0, stochastic) << name_of(kind);
      EXPECT_TRUE(at::isfinite(end).all().item<bool>());
    }
}

TEST(Samplers, PureNoiseStartsOfAZeroTerminalSnr) {
  ScheduleConfig c;
  c.zero_terminal_snr = true;
  const Schedule schedule(c);
  for (const SamplerKind kind : kAllSamplers) {
    const SamplingConfig config{.sampler = kind, .steps = 20};
    const SamplingPlan plan = make_plan(schedule, config);
    SamplingPlan levels = plan;
    const Tensor end = sample(schedule, plan, Prediction::v_prediction, config, exact_network(levels, Prediction::v_prediction), start(), [](int64_t i) { return normal_by_id(at::arange(2), {6}, 1, Stream::sampling, i); });
    EXPECT_TRUE(at::isfinite(end).all().item<bool>()) << name_of(kind);
    EXPECT_LT((end - kMean).abs().max().item<double>(), 6 * kDeviation) << name_of(kind);
  }
  const SamplingConfig ddim{.steps = 20};
  EXPECT_THAT(message_of<ConfigError>([&] { sample(schedule, make_plan(schedule, ddim), Prediction::epsilon, ddim, [](const Tensor& x, double) { return x; }, start()); }),
              ::testing::HasSubstr("v_prediction"));
}

TEST(Samplers, ClippingHoldsPixelsInRange) {
  const Schedule schedule(ScheduleConfig{});
  for (const SamplerKind kind : kAllSamplers) {
    const SamplingConfig config{.sampler = kind, .steps = 10, .clip_sample = 1.0, .timestep_scaling = 0.0};
    const Tensor end = sample(schedule, make_plan(schedule, config), Prediction::sample, config, [](const Tensor& x, double) { return at::full_like(x, 3.0); },
                              start(), [](int64_t) { return at::zeros({2, 6}); });
    EXPECT_TRUE(at::allclose(end, at::ones_like(end))) << name_of(kind);
  }
}

}  // namespace
}  // namespace fewstep::diffusion
