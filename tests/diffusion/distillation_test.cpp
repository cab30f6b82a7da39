// Student schedules, phased consistency and distribution matching against published values and closed forms.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "src/config/config.h"
#include "src/diffusion/consistency.h"
#include "src/diffusion/distribution_matching.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "tests/support/message_of.h"

namespace fewstep::diffusion {
namespace {

using ::testing::AllOf;
using ::testing::DoubleNear;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pointwise;

Schedule beta_schedule() { return Schedule({}); }
Schedule flow_schedule(double shift = 1.0) { return Schedule({.kind = ScheduleKind::flow, .shift = shift}); }
std::vector<double> values(std::span<const double> x) { return {x.begin(), x.end()}; }
Tensor normal(at::IntArrayRef shape, int64_t step) {
  return normal_by_id(at::arange(shape[0]), shape.slice(1), 7, Stream::noise, step).to(at::kDouble);
}
double largest(const Tensor& x) { return x.abs().max().item<double>(); }

std::string rungs_error(const StudentScheduleConfig& c, const Schedule& s) {
  return message_of<ConfigError>([&] { StudentSchedule(c, s); });
}

TEST(StudentSchedule, HasThePublishedRungs) {
  const Schedule beta = beta_schedule(), flow = flow_schedule();
  EXPECT_THAT(values(StudentSchedule({.steps = 4}, beta).timesteps()), ElementsAre(999, 749, 499, 249));
  EXPECT_THAT(values(StudentSchedule({.steps = 2}, beta).timesteps()), ElementsAre(999, 499));
  EXPECT_THAT(values(StudentSchedule({.steps = 1}, beta).timesteps()), ElementsAre(999));
  EXPECT_THAT(values(StudentSchedule({.timesteps = {399}}, beta).timesteps()), ElementsAre(399));
  const StudentSchedule lightning({.steps = 4, .shift = 3.0, .student = StudentKind::ode}, flow);
  EXPECT_THAT(lightning.plan().sigmas, Pointwise(DoubleNear(1e-12), {1.0, 0.9, 0.75, 0.5, 0.0}));
  const StudentSchedule two({.steps = 2, .shift = 2.5, .student = StudentKind::ode}, flow);
  EXPECT_THAT(values(two.timesteps()), Pointwise(DoubleNear(1e-9), {1000.0, 1000.0 * 1.25 / 1.75}));
  EXPECT_THAT(StudentSchedule({.steps = 4}, flow_schedule(3.0)).plan().sigmas, Pointwise(DoubleNear(1e-12), {1.0, 0.9, 0.75, 0.5, 0.0}));
}

TEST(StudentSchedule, LevelsAreTheSchedulesAndEndClean) {
  const Schedule beta = beta_schedule();
  const StudentSchedule student({.steps = 4}, beta);
  for (int64_t k = 0; k < 4; ++k) {
    EXPECT_EQ(student.alpha(k), beta.alpha(student.timestep(k)));
    EXPECT_EQ(student.sigma(k), beta.sigma(student.timestep(k)));
  }
  EXPECT_EQ(student.alpha(4), 1.0);
  EXPECT_EQ(student.sigma(4), 0.0);
  EXPECT_EQ(student.draw_rung(0.0), 0);
  EXPECT_EQ(student.draw_rung(0.49), 1);
  EXPECT_EQ(student.draw_rung(0.999), 3);
}

TEST(StudentSchedule, RefusesRungsThatCannotBe) {
  const Schedule beta = beta_schedule(), flow = flow_schedule();
  EXPECT_THAT(rungs_error({.steps = 7}, beta), AllOf(HasSubstr("7 steps do not divide the 1000"), HasSubstr("take 5 or 8"), HasSubstr("timesteps")));
  EXPECT_THAT(rungs_error({.timesteps = {1000, 499}}, beta), AllOf(HasSubstr("rung 0 is 1000"), HasSubstr("[0, 999]")));
  EXPECT_THAT(rungs_error({.timesteps = {499, 749}}, beta), HasSubstr("rung 1 is 749 after 499"));
  EXPECT_THAT(rungs_error({.timesteps = {999, 499.5}}, beta), HasSubstr("whole timesteps"));
  EXPECT_THAT(rungs_error({.timesteps = {1000, 0}}, flow), HasSubstr("no noise"));
  EXPECT_THAT(rungs_error({.shift = 3.0}, beta), HasSubstr("suits flow"));
  EXPECT_THAT(rungs_error({}, Schedule({.kind = ScheduleKind::flow, .dynamic_shift = true})), HasSubstr("shift must be given"));
  EXPECT_EQ(StudentSchedule({.steps = 7}, flow).steps(), 7);
}

TEST(StudentSchedule, ChecksTheSchedulerItIsShippedWith) {
  const Schedule beta = beta_schedule(), flow = flow_schedule();
  for (const StudentKind kind : {StudentKind::ode, StudentKind::stochastic}) {
    for (const int64_t n : {1, 2, 4, 8}) {
      const StudentSchedule student({.steps = n, .student = kind}, beta);
      const SchedulerConfig shipped = read_scheduler_config(scheduler_json(student.scheduler(Prediction::epsilon)), "test");
      EXPECT_NO_THROW(student.check_scheduler(shipped, "test")) << n;
      const StudentSchedule of_flow({.steps = n, .shift = 3.0, .student = kind}, flow);
      EXPECT_NO_THROW(of_flow.check_scheduler(read_scheduler_config(scheduler_json(of_flow.scheduler(Prediction::flow)), "test"), "test")) << n;
    }
  }
  // A published two-step student: shift 2.5 and shift_terminal 0.7155.
  const StudentSchedule two({.timesteps = {1000, 715.5}, .shift = 2.5, .student = StudentKind::ode}, flow);
  EXPECT_DOUBLE_EQ(two.scheduler(Prediction::flow).schedule.shift_terminal, 0.7155);
}

TEST(StudentSchedule, RefusesASchedulerOfOtherLevels) {
  const StudentSchedule two({.steps = 2, .shift = 2.5, .student = StudentKind::ode}, flow_schedule());
  // Qwen-Image's own at 1328 x 1328: the second step would be at 0.02.
  SchedulerConfig base{.schedule = {.kind = ScheduleKind::flow, .dynamic_shift = true, .max_shift = 0.9, .max_length = 8192, .shift_terminal = 0.02},
                       .prediction = Prediction::flow,
                       .sampling = {.sampler = SamplerKind::flow_euler}};
  EXPECT_THAT(message_of<ConfigError>([&] { two.check_scheduler(base, "scheduler_config.json", 83 * 83); }),
              AllOf(HasSubstr("[1.0000, 0.0200, 0.0000]"), HasSubstr("[1.0000, 0.7143, 0.0000]"), HasSubstr("scheduler_config.json")));
  const StudentSchedule four({.steps = 4}, beta_schedule());
  const SchedulerConfig lcm{.sampling = {.sampler = SamplerKind::lcm}};  // 999, 759, 499, 259
  EXPECT_THAT(message_of<ConfigError>([&] { four.check_scheduler(lcm, "x"); }), AllOf(HasSubstr("759"), HasSubstr("749")));
  const SchedulerConfig ddim{.sampling = {.sampler = SamplerKind::ddim}};
  EXPECT_THAT(message_of<ConfigError>([&] { four.check_scheduler(ddim, "x"); }), AllOf(HasSubstr("ddim"), HasSubstr("stochastic")));
  const StudentSchedule ode({.steps = 4, .student = StudentKind::ode}, beta_schedule());
  EXPECT_NO_THROW(ode.check_scheduler(ddim, "x"));
  const SchedulerConfig other_betas{.schedule = {.beta_end = 0.02}, .sampling = {.sampler = SamplerKind::ddim}};
  EXPECT_THAT(message_of<ConfigError>([&] { ode.check_scheduler(other_betas, "x"); }), HasSubstr("was trained at"));
  EXPECT_THAT(message_of<ConfigError>([&] { StudentSchedule({.timesteps = {399}}, beta_schedule()).scheduler(Prediction::epsilon); }),
              HasSubstr("no scheduler of diffusers"));
}

struct DistillationRoot {
  StudentScheduleConfig student = {};
  ConsistencyConfig consistency = {};
  ScoreRange range = {};
};
void describe(config::Visitor& v, DistillationRoot& c) {
  v.field("student", c.student, "rungs");
  v.field("consistency", c.consistency, "warm start");
  v.field("range", c.range, "timesteps");
}

TEST(StudentSchedule, IsReadFromYaml) {
  const auto c = config::parse<DistillationRoot>(
      "student: {timesteps: [1000, 715.5], shift: 2.5, student: ode}\nconsistency: {solver_steps: 50, distance: l2}\nrange: {max: 0.5}\n");
  EXPECT_EQ(c.student.student, StudentKind::ode);
  EXPECT_THAT(c.student.timesteps, ElementsAre(1000, 715.5));
  EXPECT_EQ(c.consistency.distance, ConsistencyDistance::l2);
  EXPECT_EQ(c.range.max, 0.5);
  const auto says = [](const std::string& yaml) { return message_of<ConfigError>([&] { config::parse<DistillationRoot>(yaml); }); };
  EXPECT_THAT(says("consistency: {cfg_min: 5, cfg_max: 4}"), HasSubstr("must not be below cfg_min"));
  EXPECT_THAT(says("range: {min: 0.5, max: 0.4}"), HasSubstr("must be above min"));
  EXPECT_THAT(says("student: {student: odee}"), HasSubstr("stochastic"));
}

TEST(SolverGrid, PhasesEndAtTheRungs) {
  const StudentSchedule student({.steps = 4}, beta_schedule());
  const SolverGrid grid(student, 40);
  for (int64_t i = 0; i < 40; ++i) EXPECT_EQ(grid.timesteps()[static_cast<size_t>(i)], static_cast<double>((i + 1) * 25 - 1));
  EXPECT_THAT(grid.edges(), ElementsAre(0, 10, 20, 30));
  const Tensor i = at::arange(40);
  const Tensor end = grid.end(i).timestep, edge = grid.is_edge(i);
  for (int64_t j = 0; j < 40; ++j) {
    EXPECT_EQ(grid.edge(j), j / 10 * 10);
    EXPECT_EQ(end[j].item<int64_t>(), j < 10 ? 0 : j / 10 * 250 - 1);
    EXPECT_EQ(edge[j].item<bool>(), j % 10 == 0);
  }
  EXPECT_EQ(largest(grid.end(i).sigma.narrow(0, 0, 10)), 0.0);
  EXPECT_EQ(grid.before(i).timestep[1].item<int64_t>(), 24);
}

TEST(SolverGrid, SharesTheShiftedAxisOfFlow) {
  const StudentSchedule student({.steps = 2, .shift = 2.5, .student = StudentKind::ode}, flow_schedule());
  const SolverGrid grid(student, 40);
  EXPECT_THAT(grid.edges(), ElementsAre(0, 20));
  for (int64_t i = 0; i < 40; ++i)
    EXPECT_NEAR(grid.timesteps()[static_cast<size_t>(i)], 1000.0 * Schedule::shifted(static_cast<double>(i + 1) / 40.0, 2.5), 1e-9);
  EXPECT_NEAR(grid.end(at::tensor({39}, at::kLong)).sigma.item<double>(), 1.25 / 1.75, 1e-12);
  // Rungs given one by one become the edges of phases of their own lengths.
  const StudentSchedule uneven({.timesteps = {1000, 715.5}, .student = StudentKind::ode}, flow_schedule());
  EXPECT_NEAR(SolverGrid(uneven, 10).timesteps()[4], 715.5, 1e-9);
}

TEST(SolverGrid, RefusesGridsWithoutTheRungs) {
  const StudentSchedule four({.steps = 4}, beta_schedule());
  EXPECT_THAT(message_of<ConfigError>([&] { SolverGrid(four, 50); }), AllOf(HasSubstr("solver_steps 50"), HasSubstr("take 52")));
  EXPECT_THAT(message_of<ConfigError>([&] { SolverGrid(four, 2000); }), HasSubstr("fewer"));
  const std::vector<double> fifty = [] {
    std::vector<double> out;
    for (int i = 0; i < 50; ++i) out.push_back((i + 1) * 20 - 1);
    return out;
  }();
  EXPECT_THAT(message_of<ConfigError>([&] { four.phase_edges(fifty); }), AllOf(HasSubstr("249"), HasSubstr("259")));
  EXPECT_THAT(message_of<ConfigError>([&] { four.phase_edges(std::vector<double>{249, 499}); }), HasSubstr("starts at timestep 499"));
  EXPECT_THAT(StudentSchedule({.steps = 2}, beta_schedule()).phase_edges(fifty), ElementsAre(0, 25));
}

TEST(Consistency, JumpIsDdimAndEuler) {
  const Tensor x = normal({5, 3, 2}, 1), output = normal({5, 3, 2}, 2), i = at::tensor({3, 12, 25, 30, 39}, at::kLong);
  const SolverGrid grid(StudentSchedule({.steps = 4}, beta_schedule()), 40);
  const NoiseLevels from = grid.at(i), to = grid.end(i);
  const auto wide = [](const Tensor& level) { return level.view({5, 1, 1}); };
  const Tensor x0 = (x - wide(from.sigma) * output) / wide(from.alpha);
  EXPECT_LT(largest(jump(Prediction::epsilon, output, x, from, to) - (wide(to.alpha) * x0 + wide(to.sigma) * output)), 1e-12);
  const SolverGrid flow(StudentSchedule({.steps = 4, .shift = 3}, flow_schedule()), 40);
  const NoiseLevels here = flow.at(i), next = flow.before(i);
  EXPECT_LT(largest(jump(Prediction::flow, output, x, here, next) - (x + wide(next.sigma - here.sigma) * output)), 1e-12);
}

TEST(Consistency, TeacherIsGuidedOnBothX0AndEps) {
  const Tensor x = normal({2, 4}, 1), c = normal({2, 4}, 2), u = normal({2, 4}, 3), i = at::tensor({15, 30}, at::kLong);
  const SolverGrid grid(StudentSchedule({.steps = 4}, beta_schedule()), 40);
  const NoiseLevels from = grid.at(i), to = grid.before(i);
  const Tensor scale = at::tensor({7.0, 8.0}, at::kDouble), w = (scale - 1.0).view({2, 1});
  const Denoised of_c = split_prediction(Prediction::epsilon, c, x, from.alpha, from.sigma), of_u = split_prediction(Prediction::epsilon, u, x, from.alpha, from.sigma);
  const Tensor x0 = of_c.x0 + w * (of_c.x0 - of_u.x0), eps = c + w * (c - u);  // PCM's w
  const Tensor expected = to.alpha.view({2, 1}) * x0 + to.sigma.view({2, 1}) * eps;
  EXPECT_LT(largest(teacher_step(Prediction::epsilon, c, u, scale, x, from, to) - expected), 1e-10);
  EXPECT_LT(largest(teacher_step(Prediction::epsilon, c, {}, scale, x, from, to) - jump(Prediction::epsilon, c, x, from, to)), 1e-12);
}

// Of data in one point, trajectories are straight in (x0, eps): every jump is exact, and the loss 0.
TEST(Consistency, LossOfAnExactNetworkIsZero) {
  for (const bool flow : {false, true}) {
    const Schedule schedule = flow ? flow_schedule() : beta_schedule();
    const Prediction prediction = flow ? Prediction::flow : Prediction::epsilon;
    const SolverGrid grid(StudentSchedule({.steps = 4, .shift = flow ? 3.0 : 0.0}, schedule), 40);
    const Tensor i = at::arange(40), x0 = at::full({40, 6}, 0.7, at::kDouble), eps = normal({40, 6}, 5);
    const auto network = [&](const Tensor& x, const NoiseLevels& at) {
      const Tensor implied = (x - at.alpha.view({40, 1}) * x0) / at.sigma.view({40, 1});
      return prediction_target(prediction, x0, implied, at.alpha, at.sigma);
    };
    const NoiseLevels here = grid.at(i), before = grid.before(i), end = grid.end(i);
    const Tensor x = here.alpha.view({40, 1}) * x0 + here.sigma.view({40, 1}) * eps;
    const Tensor online = jump(prediction, network(x, here), x, here, end);
    const Tensor x_prev = teacher_step(prediction, network(x, here), {}, {}, x, here, before);
    const Tensor target = consistency_target(jump(prediction, network(x_prev, before), x_prev, before, end), x_prev, grid.is_edge(i));
    EXPECT_TRUE(target.isfinite().all().item<bool>());  // at the clean end the network says nothing: the edge rule answers
    EXPECT_LT(largest(online - target), 1e-11) << flow;
    EXPECT_LT(largest(consistency_loss({}, online, target)), 1e-11) << flow;
  }
}

TEST(Consistency, OnlyTheOnlineJumpHasAGradient) {
  const SolverGrid grid(StudentSchedule({.steps = 4}, beta_schedule()), 40);
  const Tensor i = at::tensor({10, 15}, at::kLong), x = normal({2, 4}, 1), output = normal({2, 4}, 2).requires_grad_(true);
  const Tensor online = jump(Prediction::epsilon, output, x, grid.at(i), grid.end(i));
  const Tensor x_prev = teacher_step(Prediction::epsilon, output, {}, {}, x, grid.at(i), grid.before(i));
  EXPECT_TRUE(online.requires_grad());
  EXPECT_FALSE(x_prev.requires_grad());
  const Tensor target = consistency_target(online, x_prev, grid.is_edge(i));
  EXPECT_FALSE(target.requires_grad());
  EXPECT_TRUE(at::equal(target[0], x_prev[0]));  // 10 is an edge, 15 is not
  EXPECT_TRUE(at::equal(target[1], online[1].detach()));
}

TEST(Consistency, DistancesArePerSample) {
  const Tensor a = at::tensor({0.0, 3.0, 1.0, 1.0}, at::kDouble).view({2, 2}), b = at::zeros({2, 2}, at::kDouble);
  const double c = 1e-3, huber = 0.5 * (std::sqrt(9.0 + c * c) - c);
  EXPECT_NEAR(consistency_loss({}, a, b)[0].item<double>(), huber, 1e-12);
  EXPECT_NEAR(consistency_loss({.distance = ConsistencyDistance::l2}, a, b)[0].item<double>(), 4.5, 1e-12);
  EXPECT_NEAR(consistency_loss({.distance = ConsistencyDistance::l2}, a, b)[1].item<double>(), 1.0, 1e-12);
}

// x0 = 0.3 with the noise of level `from`, taken to `to`, against what x_to is: mean alpha_to x0, deviation sigma_to.
TEST(Consistency, RenoisedSamplesHaveTheVarianceOfTheirLevel) {
  constexpr int64_t n = 200000;
  const Tensor first = at::zeros({n, 1}, at::kLong), noise = normal({n, 1}, 1), fresh = normal({n, 1}, 2);
  for (const bool flow : {false, true}) {
    const Schedule s = flow ? flow_schedule() : beta_schedule();
    const auto level = [&](double t) {
      const Tensor timestep = at::full({n}, t, at::kDouble);
      return NoiseLevels{timestep, s.alpha(timestep), s.sigma(timestep)};
    };
    const NoiseLevels from = level(flow ? 500 : 249), to = level(flow ? 750 : 400);
    const double sigma_from = from.sigma[0].item<double>(), sigma_to = to.sigma[0].item<double>();
    const Tensor x = 0.3 * from.alpha.view({n, 1}) + sigma_from * noise, y = renoise(x, from, to, fresh);
    EXPECT_NEAR(y.mean().item<double>(), 0.3 * to.alpha[0].item<double>(), 0.01);
    EXPECT_NEAR(y.std().item<double>(), sigma_to, 0.005);  // its own error: 0.0016
    if (flow) {                                            // the published formula must not pass this test
      const double keep = (1 - sigma_to) / (1 - sigma_from), wrong = (sigma_to - sigma_from) / (1 - sigma_from);
      EXPECT_GT(std::abs((keep * x + wrong * fresh).std().item<double>() - sigma_to), 0.1);
    } else {
      const Tensor r = (s.alpha(400) * s.alpha(400) / (s.alpha(249) * s.alpha(249))) * at::ones({1}, at::kDouble);
      EXPECT_LT(largest(y - (r.sqrt() * x + (1 - r).sqrt() * fresh)), 1e-9);
    }
    EXPECT_THAT(message_of<ConfigError>([&] { renoise(x, to, from, fresh); }), HasSubstr("cleaner"));
  }
}

TEST(SolverGrid, AdversarialLevelsLieInTheirPhase) {
  const SolverGrid grid(StudentSchedule({.steps = 4}, beta_schedule()), 40);
  const Tensor i = at::tensor({3, 15, 15, 39}, at::kLong), u = at::tensor({0.0, 0.0, 0.999, 0.5}, at::kDouble);
  const NoiseLevels t = grid.adversarial(i, u);
  EXPECT_TRUE(at::equal(t.timestep, at::tensor({0, 249, 498, 874}, at::kLong)));
  EXPECT_NO_THROW(renoise(normal({4, 3}, 1), grid.end(i), t, normal({4, 3}, 2)));
}

TEST(DistributionMatching, ScoreTimestepsCoverTheirRange) {
  const Tensor u = (at::arange(100000).to(at::kDouble) + 0.5) / 100000.0;
  const Tensor t = score_timesteps({}, beta_schedule(), u);
  EXPECT_EQ(t.scalar_type(), at::kLong);
  EXPECT_EQ(t.min().item<int64_t>(), 20);
  EXPECT_EQ(t.max().item<int64_t>(), 980);
  EXPECT_NEAR(t.eq(20).sum().item<double>(), 100000.0 / 961.0, 1.5);
  const Tensor all = score_timesteps({.min = 0.0, .max = 1.0}, beta_schedule(), u);
  EXPECT_EQ(all.min().item<int64_t>(), 0);
  EXPECT_EQ(all.max().item<int64_t>(), 999);
  const Tensor flow = score_timesteps({}, flow_schedule(), u), shifted = score_timesteps({.shift = 3.0}, flow_schedule(), u);
  EXPECT_NEAR(flow.mean().item<double>(), 500.0, 0.1);
  EXPECT_NEAR(shifted.median().item<double>(), 750.0, 0.1);
  EXPECT_LE(shifted.max().item<double>(), 980.0);
  EXPECT_GE(shifted.min().item<double>(), 20.0);
  EXPECT_THAT(message_of<ConfigError>([&] { score_timesteps({.min = 0.9, .max = 0.1}, beta_schedule(), u); }), HasSubstr("[0.9, 0.1]"));
}

TEST(DistributionMatching, GradientIsNormalisedPerSample) {
  const Tensor x0 = normal({3, 2, 4}, 1), xf = normal({3, 2, 4}, 2), xr = normal({3, 2, 4}, 3);
  const Tensor g = reverse_kl_gradient(x0, xf, xr);
  for (int64_t b = 0; b < 3; ++b) EXPECT_LT(largest(g[b] - (xf[b] - xr[b]) / (x0[b] - xr[b]).abs().mean()), 1e-12);
  EXPECT_EQ(largest(reverse_kl_gradient(x0, x0, x0)), 0.0);  // a perfect student: no 0 / 0
  EXPECT_EQ(reverse_kl_gradient(x0.to(at::kBFloat16), xf.to(at::kBFloat16), xr.to(at::kBFloat16)).scalar_type(), at::kFloat);
  EXPECT_TRUE(reverse_kl_gradient(x0, xf * NAN, xr).isnan().any().item<bool>());
}

TEST(DistributionMatching, PseudoLossHasTheGradient) {
  const Tensor x0 = normal({5, 7}, 1).requires_grad_(true), g = normal({5, 7}, 2);
  const Tensor loss = pseudo_loss(x0, g).mean();
  loss.backward();
  EXPECT_LT(largest(x0.grad() - g / 35.0), 1e-16);
  EXPECT_NEAR(loss.item<double>(), 0.5 * g.square().mean().item<double>(), 1e-12);
  // ... which is that of 0.5 MSE(x0, x0 - g), by differences.
  const auto mse = [&](const Tensor& z) { return 0.5 * (z - (x0.detach() - g)).square().mean().item<double>(); };
  for (int64_t j = 0; j < 35; ++j) {
    Tensor step = at::zeros({35}, at::kDouble);
    step[j] = 1e-3;  // a quadratic: central differences are exact
    const double slope = (mse(x0.detach() + step.view({5, 7})) - mse(x0.detach() - step.view({5, 7}))) / 2e-3;
    EXPECT_NEAR(slope, x0.grad().flatten()[j].item<double>(), 1e-9);
  }
  // Small next to x0, where x0 - g rounds g away.
  const Tensor big = at::full({1, 4}, 1000.0f).requires_grad_(true), small = at::full({1, 4}, 1e-6f);
  pseudo_loss(big, small).mean().backward();
  EXPECT_FLOAT_EQ(big.grad()[0][0].item<float>(), 2.5e-7f);
}

TEST(DistributionMatching, FakeScoreIsTrainedInItsOwnForm) {
  const Tensor x0 = normal({3, 4}, 1), noise = normal({3, 4}, 2), output = normal({3, 4}, 3).requires_grad_(true);
  const Tensor a = at::full({3}, 0.6, at::kDouble), s = at::full({3}, 0.8, at::kDouble);
  const auto mse = [&](const Tensor& target) { return (output - target).square().mean(1); };
  EXPECT_LT(largest(fake_score_loss(Prediction::epsilon, output, x0, noise, a, s) - mse(noise)), 1e-12);
  EXPECT_LT(largest(fake_score_loss(Prediction::flow, output, x0, noise, a, s) - mse(noise - x0)), 1e-12);
  EXPECT_LT(largest(fake_score_loss(Prediction::sample, output, x0, noise, a, s) - mse(x0)), 1e-12);
  EXPECT_LT(largest(fake_score_loss(Prediction::v_prediction, output, x0, noise, a, s) - mse(0.6 * noise - 0.8 * x0)), 1e-12);
  const Tensor generated = normal({3, 4}, 4).requires_grad_(true);
  fake_score_loss(Prediction::flow, output, generated, noise, a, s).sum().backward();
  EXPECT_FALSE(generated.grad().defined());
  EXPECT_TRUE(output.grad().defined());
}

TEST(DistributionMatching, GuidanceIsFromTheUnconditionalSide) {
  const Tensor x = normal({2, 3}, 1), c = normal({2, 3}, 2), u = normal({2, 3}, 3), a = at::full({2}, 0.6, at::kDouble), s = at::full({2}, 0.8, at::kDouble);
  const auto x0 = [&](const Tensor& output) { return predicted_x0(Prediction::epsilon, output, x, a, s); };
  EXPECT_LT(largest(guided_x0(Prediction::epsilon, c, u, 8.0, x, a, s) - (x0(u) + 8.0 * (x0(c) - x0(u)))), 1e-12);
  EXPECT_LT(largest(guided_x0(Prediction::epsilon, c, u, 1.0, x, a, s) - x0(c)), 1e-12);
  EXPECT_LT(largest(guided_x0(Prediction::epsilon, c, {}, 8.0, x, a, s) - x0(c)), 1e-12);
}

// A network that depends on x and t.
Tensor some_network(const Tensor& x, double t) { return 0.8 * (x + std::sin(t)).tanh() + 0.1 * x; }

struct Rollout {
  StudentSchedule student;
  Prediction prediction;
  NoiseSource noise = [](int64_t step) { return normal({2, 3}, 100 + step); };
  Tensor x_T = normal({2, 3}, 50);
  Tensor input(int64_t k) const { return simulate_student(some_network, prediction, student, x_T, noise, k); }
};

void expect_sampler_course(const Rollout& r) {
  std::vector<Tensor> seen = {r.x_T};
  sample(r.student.schedule(), r.student.plan(), r.prediction, r.student.sampling(), some_network, r.x_T, r.noise,
         [&](int64_t, const Tensor& x) { seen.push_back(x); });
  // By hand, independent of the samplers.
  Tensor x = r.x_T;
  for (int64_t k = 0; k < r.student.steps(); ++k) {
    EXPECT_TRUE(at::equal(r.input(k), seen[static_cast<size_t>(k)])) << "rung " << k;
    EXPECT_LT(largest(r.input(k) - x), 1e-12) << "rung " << k;
    const Denoised parts = split_prediction(r.prediction, some_network(x, r.student.timestep(k)), x, r.student.alpha(k), r.student.sigma(k));
    const bool ode = r.student.config().student == StudentKind::ode;
    x = r.student.alpha(k + 1) * parts.x0 + r.student.sigma(k + 1) * (ode ? parts.noise : r.noise(k));
  }
  EXPECT_LT(largest(seen.back() - x), 1e-12);
}

TEST(SimulateStudent, VisitsTheSamplersPoints) {
  for (const StudentKind kind : {StudentKind::ode, StudentKind::stochastic}) {
    expect_sampler_course({StudentSchedule({.steps = 4, .student = kind}, beta_schedule()), Prediction::epsilon});
    expect_sampler_course({StudentSchedule({.steps = 4, .shift = 3.0, .student = kind}, flow_schedule()), Prediction::flow});
  }
}

TEST(SimulateStudent, TwoStepOdeIsTheStraightLineFromItsNoise) {
  const Rollout r{StudentSchedule({.steps = 2, .shift = 2.5, .student = StudentKind::ode}, flow_schedule()), Prediction::flow};
  const Tensor x0 = r.x_T - some_network(r.x_T, 1000.0);
  const double s = r.student.sigma(1);
  EXPECT_LT(largest(r.input(1) - ((1 - s) * x0 + s * r.x_T)), 1e-12);
}

TEST(SimulateStudent, StartsFromPureNoiseAndHasNoGradient) {
  const Rollout one{StudentSchedule({.timesteps = {399}}, beta_schedule()), Prediction::epsilon};
  EXPECT_TRUE(at::equal(one.input(0), one.x_T));
  const Tensor weight = at::ones({1}, at::kDouble).requires_grad_(true);
  const StudentSchedule four({.steps = 4}, beta_schedule());
  int64_t calls = 0;
  const Network network = [&](const Tensor& x, double) { return ++calls, weight * x; };
  const Tensor x = simulate_student(network, Prediction::epsilon, four, one.x_T, one.noise, 3);
  EXPECT_FALSE(x.requires_grad());
  EXPECT_EQ(calls, 3);  // not the whole course
}

TEST(DistributionMatching, AlignmentMovesTheFakeScore) {
  Tensor fake = at::ones({3}).requires_grad_(true);
  const Tensor student = at::full({3}, 2.0).requires_grad_(true);
  align_fake_score(std::span(&fake, 1), std::span(&student, 1), 0.97);
  EXPECT_NEAR(fake[0].item<double>(), 1.03, 1e-6);
  EXPECT_TRUE(fake.is_leaf() && fake.requires_grad());
  EXPECT_THAT(message_of<ConfigError>([&] { align_fake_score({}, {}, 1.5); }), HasSubstr("1.5"));
}

TEST(DistributionMatching, MonitorsAddUp) {
  const Tensor xr = at::zeros({4, 2}), xf = at::tensor({1.0, -1.0, 2.0, 2.0, 3.0, 3.0, 0.0, 8.0}, at::kFloat).view({4, 2}), t = at::tensor({20, 980, 999, 260}, at::kLong);
  const ScoreGap gap = score_gap(xf, xr, t, beta_schedule(), 4);
  EXPECT_TRUE(at::equal(gap.sum, at::tensor({1.0, 4.0, 0.0, 5.0}, at::kDouble)));
  EXPECT_TRUE(at::equal(gap.count, at::tensor({1.0, 1.0, 0.0, 2.0}, at::kDouble)));
  EXPECT_DOUBLE_EQ(gradient_ratio(at::full({4}, 3.0), at::full({4}, 1.5)), 2.0);
  EXPECT_EQ(gradient_ratio(at::zeros({4}), at::zeros({4})), 0.0);
}

}  // namespace
}  // namespace fewstep::diffusion
