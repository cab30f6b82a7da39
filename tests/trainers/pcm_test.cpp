// The trainer `pcm` in the test's own process: a step against the equations written out, adapters, resume, errors.
#include "trainers/pcm.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "src/config/config.h"
#include "src/diffusion/student_schedule.h"
#include "src/nn/layers.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "tests/support/message_of.h"
#include "tests/trainers/distillation_bench.h"
#include "trainers/loop.h"

namespace fewstep {
namespace {
namespace fs = std::filesystem;
using ::testing::HasSubstr;
using testing::DistillationGround;
using testing::largest_difference;
using testing::make_teacher;

struct PcmConfigRoot {
  PcmConfig config;
};
void describe(config::Visitor& v, PcmConfigRoot& r) { r.config.describe(v); }

// A trainer with all it refers to.
struct PcmBench {
  DistillationGround ground;
  PcmConfigRoot root;
  std::unique_ptr<Trainer> trainer;
  explicit PcmBench(const std::string& yaml, int64_t accumulate = 1)
      : root(config::parse<PcmConfigRoot>(yaml)), trainer(root.config.build(ground.context(accumulate))) {}
  std::map<std::string, double> step(int64_t step) {
    Metrics m = trainer->step(ground.batch(step), {.step = step, .epoch = 0, .seed = 3});
    return m.reduce(*ground.world);
  }
  std::map<std::string, double> validate() {
    const NoGrad no_grad;
    Metrics m = trainer->validate(load_range(ground.data, 0, 48, 0));
    return m.reduce(*ground.world);
  }
  TensorMap weights() const {
    TensorMap out;
    const auto state = trainer->state();
    for (const auto& [name, tensor] : state.at("weights")) out.emplace(name, tensor.clone());
    return out;
  }
};

class Pcm : public ::testing::Test {
 protected:
  Pcm() : scratch_("pcm") {
    make_teacher(scratch_ / "flow");
    make_teacher(scratch_ / "epsilon", {.prediction = "epsilon", .noise = 2});
  }
  std::string yaml(const std::string& teacher, const std::string& more) const {
    return fmt::format("teacher: {}\n{}\n", (scratch_ / teacher).string(), more);
  }
  testing::ScratchFolder scratch_;
};
const std::string kFlow = "student: {timesteps: [1000, 700]}\nconsistency: {solver_steps: 10, cfg_min: 1.5, cfg_max: 1.5}\n";
const std::string kEpsilon = "student: {steps: 4}\nconsistency: {solver_steps: 20, cfg_min: 3, cfg_max: 5, distance: l2}\n";

// ---- the algorithm, written out with its own arithmetic for both predictions (only the grid's levels are the library's)

struct Transcription {
  pipelines::DiffusionModel model;
  std::unique_ptr<models::UNet2DConditionModel> student;
  diffusion::StudentSchedule schedule;
  diffusion::SolverGrid grid;
  diffusion::ConsistencyConfig c;
  Transcription(const fs::path& folder, const PcmConfig& config)
      : model(pipelines::load_diffusion_model(folder)), schedule(config.distillation.student, model.schedule),
        grid(schedule, config.consistency.solver_steps), c(config.consistency) {
    model.unet->to(at::kDouble);
    model.conditioner->trainable()->to(at::kDouble);
    student = std::make_unique<models::UNet2DConditionModel>(model.unet->config());
    student->to(at::kDouble);
    TensorMap state;
    for (const auto& [name, tensor] : model.unet->state()) state.emplace(name, tensor);
    student->load(state, "teacher");
  }
  bool flow() const { return model.prediction == diffusion::Prediction::flow; }
  // x and the output carried to another level: x0 and eps of both forms by hand.
  Tensor carried(const Tensor& output, const Tensor& x, const diffusion::NoiseLevels& from, const diffusion::NoiseLevels& to) const {
    const auto wide = [](const Tensor& v) { return v.view({-1, 1, 1, 1}); };
    if (flow()) return x + (wide(to.sigma) - wide(from.sigma)) * output;  // Euler
    const Tensor x0 = (x - wide(from.sigma) * output) / wide(from.alpha);
    return wide(to.alpha) * x0 + wide(to.sigma) * output;                 // DDIM
  }
  Tensor loss(const Batch& batch, int64_t step) const {
    const Tensor ids = batch.ids;
    const Tensor u = uniform_by_id(ids, 2, 3, Stream::timestep, step);
    const Tensor x0 = model.latent_space->encode(batch.images).to(at::kDouble);
    const Tensor noise = normal_by_id(ids, {4, 8, 8}, 3, Stream::noise, step).to(at::kDouble);
    const Tensor i = (u.select(1, 0).to(at::kDouble) * static_cast<double>(grid.steps())).floor().to(at::kLong);
    const Tensor w = (c.cfg_min + (c.cfg_max - c.cfg_min) * u.select(1, 1).to(at::kDouble)).view({-1, 1, 1, 1});
    const diffusion::NoiseLevels at = grid.at(i), before = grid.at(i - 1), end = grid.end(i);
    models::UNetConditions told, untold;
    {
      const NoGrad no_grad;
      const pipelines::ConditionInput input{.labels = batch.labels, .micro = batch.micro};
      told = (*model.conditioner)(input), untold = model.conditioner->null(input);
    }
    const Tensor x = at.alpha.view({-1, 1, 1, 1}) * x0 + at.sigma.view({-1, 1, 1, 1}) * noise;
    const Tensor online = carried((*student)(x, at.timestep, told), x, at, end);
    const NoGrad no_grad;
    const Tensor yc = (*model.unet)(x, at.timestep, told), yu = (*model.unet)(x, at.timestep, untold);
    const Tensor x_prev = carried(yu + w * (yc - yu), x, at, before);
    Tensor target = carried((*student)(x_prev, before.timestep, told), x_prev, before, end).clone();
    for (int64_t b = 0; b < i.size(0); ++b)
      if (grid.edge(i[b].item<int64_t>()) == i[b].item<int64_t>()) target[b].copy_(x_prev[b]);
    const at::AutoGradMode with_gradients(true);
    const Tensor d = online - target;
    if (c.distance == diffusion::ConsistencyDistance::l2) return d.square().mean();
    return ((d * d + c.huber_c * c.huber_c).sqrt() - c.huber_c).mean();
  }
};

TEST_F(Pcm, AStepIsTheAlgorithmWrittenOut) {
  for (const auto& [teacher, more] : {std::pair<std::string, std::string>{"flow", kFlow}, {"epsilon", kEpsilon}}) {
    PcmBench bench(yaml(teacher, more + "precision: float64\noptimizer: {lr: 1.0e-3, clip_norm: 0, weight_decay: 0.01}\n"));
    Transcription own(scratch_ / teacher, bench.root.config);
    AdamW adamw(own.student->parameters(), bench.root.config.optimizer);
    int64_t edges = 0;
    for (int64_t step = 0; step < 6; ++step) {
      const Batch batch = bench.ground.batch(step);
      const Tensor loss = own.loss(batch, step);
      loss.backward();
      double squares = 0;
      for (const auto& [name, tensor] : own.student->parameters()) squares += tensor.grad().square().sum().item<double>();
      const auto metrics = bench.step(step);
      EXPECT_NEAR(metrics.at("loss"), loss.item<double>(), 1e-12) << teacher << " step " << step;
      EXPECT_NEAR(metrics.at("grad_norm"), std::sqrt(squares), 1e-10 * std::sqrt(squares)) << teacher << " step " << step;
      const NoGrad no_grad;
      adamw.step(1e-3, at::scalar_tensor(std::sqrt(squares), at::kDouble));
      adamw.zero_grad();
      double largest = 0;
      const TensorMap weights = bench.weights();
      for (const auto& [name, tensor] : own.student->parameters())
        largest = std::max(largest, (weights.at("student." + name) - tensor).abs().max().item<double>());
      EXPECT_LE(largest, 1e-8) << teacher << " step " << step;  // AdamW's first steps are signs of gradients: 1 / |g| of their rounding
      const Tensor i = own.grid.draw(uniform_by_id(batch.ids, 2, 3, Stream::timestep, step).select(1, 0));
      edges += own.grid.is_edge(i).sum().item<int64_t>();
    }
    EXPECT_GT(edges, 0) << "the boundary rule was not met";
  }
}

TEST_F(Pcm, MicroBatchesEqualOneBatch) {
  const std::string more = kFlow + "precision: float64\noptimizer: {lr: 1.0e-3}\n";
  PcmBench one(yaml("flow", more)), four(yaml("flow", more), 4);
  for (int64_t step = 0; step < 4; ++step) EXPECT_NEAR(one.step(step).at("loss"), four.step(step).at("loss"), 1e-12);
  EXPECT_LE(largest_difference(one.weights(), four.weights()), 1e-9);
}

TEST_F(Pcm, TheTeacherStaysAndTheStudentMoves) {
  for (const std::string lora : {"", "lora: {rank: 2}\n"}) {
    PcmBench bench(yaml("flow", kFlow + lora + "optimizer: {lr: 1.0e-2, schedule: constant}\n"));
    const auto before = bench.trainer->state();
    const TensorMap weights = bench.weights();
    for (int64_t step = 0; step < 3; ++step) bench.step(step);
    const auto after = bench.trainer->state();
    EXPECT_TRUE(before.at("teacher").at("sums").equal(after.at("teacher").at("sums")));
    int64_t moved = 0, adapters = 0;
    for (const auto& [name, tensor] : after.at("weights")) {
      moved += !tensor.equal(weights.at(name));
      adapters += name.find(".lora_") != std::string::npos;
    }
    // All but the queries and keys of attention to one class token, whose softmax is 1.
    EXPECT_GE(moved, static_cast<int64_t>(weights.size()) * 9 / 10) << lora;
    EXPECT_LT(moved, static_cast<int64_t>(weights.size())) << lora;
    EXPECT_EQ(adapters, lora.empty() ? 0 : static_cast<int64_t>(weights.size()));
  }
}

// B = 0: an adapter's first loss is that of the full student.
TEST_F(Pcm, AdaptersAndFullStudentsStartFromOneLoss) {
  for (const auto& [teacher, more] : {std::pair<std::string, std::string>{"flow", kFlow}, {"epsilon", kEpsilon}}) {
    PcmBench full(yaml(teacher, more)), lora(yaml(teacher, more + "lora: {rank: 2}\n"));
    EXPECT_EQ(full.validate().at("loss"), lora.validate().at("loss"));
    EXPECT_EQ(full.step(0).at("loss"), lora.step(0).at("loss"));
  }
}

TEST_F(Pcm, TrainingBringsTheStudentToTheTeachersSamples) {
  for (const auto& [teacher, more] : {std::pair<std::string, std::string>{"flow", kFlow}, {"epsilon", kEpsilon}}) {
    for (const std::string lora : {"", "lora: {rank: 8}\n"}) {
      PcmBench bench(yaml(teacher, more + lora + "validation_trajectories: 0.5\noptimizer: {lr: 3.0e-3, ema_decay: 0.9, ema_warmup: diffusers}\n"));
      const auto before = bench.validate();
      for (int64_t step = 0; step < 80; ++step) bench.step(step);
      const auto after = bench.validate();
      std::printf("%s %s80 steps: loss %.4g -> %.4g, x0_error %.4g -> %.4g\n", teacher.c_str(), lora.empty() ? "" : "lora ", before.at("loss"),
                  after.at("loss"), before.at("x0_error"), after.at("x0_error"));
      EXPECT_LT(after.at("loss"), 0.8 * before.at("loss")) << teacher << lora;
      EXPECT_LT(after.at("x0_error"), before.at("x0_error")) << teacher << lora;
    }
  }
}

TEST_F(Pcm, ValidationIsTheSameEachTimeAndByPhase) {
  PcmBench bench(yaml("flow", kFlow + "validation_trajectories: 0.3\n"));
  const auto first = bench.validate();
  EXPECT_EQ(first, bench.validate());
  for (const char* name : {"loss", "loss[t<=700]", "loss[t<=1000]", "x0_error"}) EXPECT_TRUE(first.contains(name)) << name;
  EXPECT_TRUE(bench.trainer->sample_grid(1).defined());
  EXPECT_GT(bench.trainer->flops_per_sample(), 0);
}

const std::string kAdversary = "adversarial: {weight: 0.1, heads: {norm_groups: 4}, optimizer: {lr: 1.0e-3}}\n";

// The student's turn reaches its jump and no head; the critic's turn the heads and nothing else. Both see the same noised level.
TEST_F(Pcm, TheAdversarysGradientsGoWhereTheyShould) {
  for (const bool lora : {false, true}) {
    DistillationGround ground;
    DistillationConfig c;
    c.teacher = (scratch_ / "epsilon").string();
    c.student.student = diffusion::StudentKind::ode;
    c.precision = Precision::float64;
    c.lora.rank = lora ? 2 : 0;
    const Distillation d(c, ground.context());
    const diffusion::SolverGrid grid(d.schedule(), 20);
    PcmAdversarialConfig config;
    config.weight = 0.5, config.heads.norm_groups = 4;
    PcmAdversary adversary(config, d, grid, ground.context());
    const Batch batch = ground.batch(0);
    const models::UNetConditions conditions = d.conditions(batch);
    const PhaseBatch on{.ids = batch.ids, .i = at::arange(8) * 2, .conditions = conditions, .at = {.step = 1, .epoch = 0, .seed = 3}};
    const Tensor online = normal_by_id(batch.ids, {4, 8, 8}, 5, Stream::noise, 0).to(at::kDouble).requires_grad_(true);
    const Tensor target = normal_by_id(batch.ids, {4, 8, 8}, 6, Stream::noise, 0).to(at::kDouble);
    const auto heads_moved = [&] {
      double sum = 0;
      for (const auto& [name, tensor] : adversary.heads().parameters()) sum += tensor.grad().defined() ? tensor.grad().abs().sum().item<double>() : 0.0;
      return sum;
    };
    const Tensor loss = adversary.student_loss(online, on);
    EXPECT_EQ(loss.sizes(), (std::vector<int64_t>{8}));
    loss.sum().backward();
    EXPECT_GT(online.grad().abs().sum().item<double>(), 0);
    EXPECT_EQ(heads_moved(), 0);
    const Tensor before = online.grad().clone();
    Metrics metrics;
    adversary.critic_turn(online, target, on, true, metrics);
    EXPECT_GT(heads_moved(), 0);
    EXPECT_TRUE(online.grad().equal(before));
    for (const auto& [name, tensor] : d.model().unet->parameters()) EXPECT_FALSE(tensor.grad().defined()) << name;
    for (const auto& [name, tensor] : d.student().parameters()) EXPECT_FALSE(tensor.grad().defined()) << name;
    const auto seen = metrics.reduce(*ground.world);
    EXPECT_NEAR(seen.at("critic"), 2.0, 1.5);  // hinge of logits near 0
    EXPECT_TRUE(seen.contains("critic_accuracy_student") && seen.contains("critic_accuracy_target"));
  }
}

TEST_F(Pcm, TheAdversaryPullsAtTheStudent) {
  const std::string more = kFlow + "precision: float64\noptimizer: {lr: 1.0e-3}\n";
  PcmBench without(yaml("flow", more)), with(yaml("flow", more + kAdversary)), parts(yaml("flow", more + kAdversary), 4);
  for (int64_t step = 0; step < 3; ++step) {
    const auto a = without.step(step), b = with.step(step), c = parts.step(step);
    if (step == 0) {
      EXPECT_EQ(a.at("loss"), b.at("loss")) << "the consistency loss is told apart";
    }
    EXPECT_NE(a.at("grad_norm"), b.at("grad_norm"));
    EXPECT_GT(b.at("adversarial"), 0);
    EXPECT_GT(b.at("critic_grad_norm"), 0);
    EXPECT_NEAR(b.at("loss"), c.at("loss"), 1e-10);
  }
}

TEST_F(Pcm, ResumeIsBitForBit) {
  for (const std::string& lora : {std::string(), std::string("lora: {rank: 2}\n"), "lora: {rank: 2}\n" + kAdversary}) {
    const std::string text = yaml("flow", kFlow + lora + "optimizer: {lr: 1.0e-2, ema_decay: 0.9}\n");
    PcmBench whole(text), first(text), second(text);
    for (int64_t step = 0; step < 6; ++step) whole.step(step);
    for (int64_t step = 0; step < 3; ++step) first.step(step);
    second.trainer->load_state(first.trainer->state());
    for (int64_t step = 3; step < 6; ++step) second.step(step);
    const auto a = whole.trainer->state(), b = second.trainer->state();
    for (const char* stem : {"weights", "optimizer", "ema", "discriminator"}) {
      if (stem == std::string("discriminator") && lora.find("adversarial") == std::string::npos) continue;
      ASSERT_TRUE(a.contains(stem)) << stem;
      for (const auto& [name, tensor] : a.at(stem)) EXPECT_TRUE(tensor.equal(b.at(stem).at(name))) << stem << " " << name;
    }
    EXPECT_EQ(whole.validate(), second.validate());
    PcmBench other(yaml("epsilon", kEpsilon + lora + "optimizer: {ema_decay: 0.9}\n"));
    EXPECT_THAT(message_of<DataError>([&] { other.trainer->load_state(a); }), HasSubstr("is not the model this run distils"));
  }
}

TEST_F(Pcm, WhatCannotBeIsNamed) {
  const auto says = [&](const std::string& teacher, const std::string& more) {
    return message_of<ConfigError>([&] { PcmBench(yaml(teacher, more)); });
  };
  EXPECT_THAT(says("epsilon", "student: {steps: 4}\nconsistency: {solver_steps: 30}\n"), HasSubstr("solver_steps 30 is no multiple of the student's 4 steps"));
  EXPECT_THAT(says("epsilon", "student: {steps: 7}\n"), HasSubstr("7 steps do not divide the 1000 training timesteps"));
  EXPECT_THAT(says("epsilon", "student: {timesteps: [1000, 500]}\n"), HasSubstr("rung 0 is 1000, outside the schedule's [0, 999]"));
  EXPECT_THAT(says("flow", "student: {timesteps: [1000, 700]}\nconsistency: {solver_steps: 9}\n"), HasSubstr("no multiple of the student's 2 steps"));
  EXPECT_THAT(says("flow", kFlow + "lora: {rank: 2, targets: [to_nothing]}\n"), HasSubstr("to_nothing"));
  EXPECT_THAT(says("flow", kFlow + fmt::format("start: {}\n", (scratch_ / "epsilon").string())),
              AllOf(HasSubstr("predicts 'epsilon'"), HasSubstr("predicts 'flow_prediction'")));
  EXPECT_THAT(says("flow", "student: {steps: 2, student: stochastic}\n"), HasSubstr("must be ode"));
  EXPECT_THAT(says("flow", "student: {steps: 2}\nconsistency: {solver_steps: 10, cfg_min: 3, cfg_max: 2}\n"), HasSubstr("must not be below cfg_min"));
  EXPECT_THAT(message_of<ConfigError>([&] { config::parse<PcmConfigRoot>("student: {steps: 2}\n"); }), HasSubstr("teacher"));
}

TEST(PcmConfigs, TheConfigsAreThePublishedOnes) {
  const auto load = [](const char* file) { return config::load<RunConfig>(fs::path(FEWSTEP_SOURCE_DIR) / "configs/distill" / file); };
  const RunConfig tiny_run = load("pcm.yaml"), full_run = load("full/pcm_sdxl.yaml");
  const auto& tiny = dynamic_cast<const PcmConfig&>(*tiny_run.trainer);
  const auto& full = dynamic_cast<const PcmConfig&>(*full_run.trainer);
  EXPECT_EQ(tiny.consistency.cfg_min, 1.5);
  EXPECT_EQ(tiny.distillation.student.timesteps, (std::vector<double>{1000, 700}));
  EXPECT_EQ(full.distillation.lora.rank, 64);
  EXPECT_EQ(full.distillation.lora.targets.size(), 14u);
  EXPECT_EQ(full.consistency.solver_steps, 40);
  EXPECT_EQ(full.consistency.cfg_max, 8.0);
  // The shifted rungs of a grid of 40 over 1000 timesteps are PCM's: (i + 1) 25 - 1, phases of 10.
  diffusion::ScheduleConfig sdxl;
  const diffusion::StudentSchedule schedule(full.distillation.student, diffusion::Schedule(sdxl));
  const diffusion::SolverGrid grid(schedule, full.consistency.solver_steps);
  for (int64_t i = 0; i < 40; ++i) EXPECT_EQ(grid.timesteps()[static_cast<size_t>(i)], static_cast<double>((i + 1) * 25 - 1));
  EXPECT_EQ(grid.edges(), (std::vector<int64_t>{0, 10, 20, 30}));
}

}  // namespace
}  // namespace fewstep
