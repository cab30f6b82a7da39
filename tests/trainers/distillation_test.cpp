// The parts that few-step trainers share: who computes what, who gets gradients, what is saved and what may go on from it.
#include "trainers/distillation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "src/base/files.h"
#include "src/diffusion/scheduler_config.h"
#include "src/pipelines/draw_latents.h"
#include "src/nn/layers.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "tests/support/message_of.h"
#include "tests/trainers/distillation_bench.h"

namespace fewstep {
namespace {
namespace fs = std::filesystem;
using ::testing::HasSubstr;
using testing::DistillationGround;
using testing::largest_difference;
using testing::make_teacher;

constexpr int64_t kSome = 3;

class Distilled : public ::testing::Test {
 protected:
  Distilled() : scratch_("distillation") { make_teacher(scratch_ / "teacher"); }
  DistillationConfig config(bool lora) const {
    DistillationConfig c;
    c.teacher = (scratch_ / "teacher").string();
    c.student.timesteps = {1000, 700};
    c.student.student = diffusion::StudentKind::ode;
    c.precision = Precision::float64;
    c.lora.rank = lora ? 2 : 0;
    return c;
  }
  // Some input of every network.
  struct Input {
    Tensor x = normal_by_id(at::arange(kSome), {4, 8, 8}, 5, Stream::noise, 0).to(at::kDouble);
    Tensor t = at::tensor({10.0, 500.0, 1000.0}, at::kDouble);
    models::UNetConditions c = {};
  };
  Input input(const Distillation& d) const {
    Input in;
    in.c = d.conditions(load_range(ground_.data, 0, kSome, 0));
    return in;
  }
  // The trained weights move by something random.
  static void stir(const DistilledNetwork& network, uint64_t seed) {
    const NoGrad no_grad;
    for (const auto& [name, tensor] : network.parameters())
      tensor.add_(0.1 * normal_by_id(at::zeros({1}, at::kLong), {tensor.numel()}, seed, Stream::init, 7).view(tensor.sizes()).to(tensor.options()));
  }
  testing::ScratchFolder scratch_;
  DistillationGround ground_;
};

TEST_F(Distilled, EveryNetworkStartsAsTheTeacherInBothModes) {
  for (const bool lora : {false, true}) {
    Distillation d(config(lora), ground_.context());
    const auto fake = d.add("fake_score");
    const Input in = input(d);
    const Tensor teacher = d.teacher(in.x, in.t, in.c);
    EXPECT_GT(teacher.abs().mean().item<double>(), 1e-2);
    EXPECT_TRUE(d.student()(in.x, in.t, in.c).equal(teacher)) << lora;
    EXPECT_TRUE((*fake)(in.x, in.t, in.c).equal(teacher)) << lora;
    if (!lora) {
      for (const auto& [name, tensor] : d.student().parameters()) EXPECT_TRUE(tensor.requires_grad()) << name;
      EXPECT_EQ(d.student().parameters().size(), d.model().unet->parameters().size());
    }
  }
}

TEST_F(Distilled, GradientsReachTheNetworkThatRanAndNeverTheTeacher) {
  for (const bool lora : {false, true}) {
    Distillation d(config(lora), ground_.context());
    const auto fake = d.add("fake_score");
    stir(d.student(), 1), stir(*fake, 2);
    Input in = input(d);
    in.x.requires_grad_(true);
    EXPECT_FALSE(d.teacher(in.x, in.t, in.c).requires_grad());
    EXPECT_FALSE(in.c.context.requires_grad());
    d.student()(in.x, in.t, in.c).square().sum().backward();
    EXPECT_GT(in.x.grad().abs().sum().item<double>(), 0);
    int64_t reached = 0;
    for (const auto& [name, tensor] : d.student().parameters()) reached += tensor.grad().defined() && tensor.grad().abs().max().item<double>() > 0;
    // A bias in front of a group norm of one channel a group could be without; most are not.
    EXPECT_GT(reached, static_cast<int64_t>(d.student().parameters().size()) * 9 / 10) << lora;
    for (const auto& [name, tensor] : fake->parameters()) EXPECT_FALSE(tensor.grad().defined()) << name;
    for (const auto& [name, tensor] : d.model().unet->parameters()) {
      EXPECT_FALSE(tensor.requires_grad()) << name;
      EXPECT_FALSE(tensor.grad().defined()) << name;
    }
    for (const auto& [name, tensor] : d.model().conditioner->trainable()->parameters()) EXPECT_FALSE(tensor.requires_grad()) << name;
  }
}

// Three networks in one: each is its own adapter on the base, as its merged weights say.
TEST_F(Distilled, AdaptersDoNotLeakIntoOneAnother) {
  Distillation d(config(true), ground_.context());
  const auto fake = d.add("fake_score");
  const NoGrad no_grad;
  const Input in = input(d);
  const Tensor teacher = d.teacher(in.x, in.t, in.c);
  // Adapters of one run start with one A: their averages make sense.
  const NamedTensors a = d.student().parameters(), b = fake->parameters();
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].name, b[i].name);
    EXPECT_TRUE(a[i].tensor.equal(b[i].tensor)) << a[i].name;
  }
  stir(d.student(), 1), stir(*fake, 2);
  EXPECT_TRUE(d.teacher(in.x, in.t, in.c).equal(teacher));
  const Tensor of_student = d.student()(in.x, in.t, in.c), of_fake = (*fake)(in.x, in.t, in.c);
  EXPECT_GT((of_student - of_fake).abs().max().item<double>(), 1e-3);
  for (const auto& [network, output] : {std::pair{&d.student(), of_student}, std::pair{fake.get(), of_fake}}) {
    models::UNet2DConditionModel whole(d.model().unet->config());
    whole.to(at::kDouble);
    whole.load(network->merged_state(), "merged");
    EXPECT_LE((whole(in.x, in.t, in.c) - output).abs().max().item<double>(), 1e-10) << network->name();
    EXPECT_GT((output - teacher).abs().max().item<double>(), 1e-3);
  }
}

// Activations are made again in backward with the adapter of their forward, whatever ran in between.
TEST_F(Distilled, RecomputeKnowsItsAdapter) {
  std::vector<TensorMap> gradients;
  for (const bool recompute : {false, true}) {
    DistillationConfig c = config(true);
    c.recompute = recompute;
    Distillation d(c, ground_.context());
    const auto fake = d.add("fake_score");
    stir(d.student(), 1), stir(*fake, 2);
    const Input in = input(d);
    const Tensor out = d.student()(in.x, in.t, in.c), other = (*fake)(in.x, in.t, in.c);
    d.teacher(in.x, in.t, in.c);
    (out.square().sum() + other.pow(3).sum()).backward();
    TensorMap g;
    for (const auto& network : {&d.student(), fake.get()})
      for (const auto& [name, tensor] : network->parameters()) g.emplace(network->name() + name, tensor.grad().clone());
    gradients.push_back(g);
  }
  EXPECT_LE(largest_difference(gradients[0], gradients[1]), 1e-10);
  double size = 0;
  for (const auto& [name, tensor] : gradients[0]) size = std::max(size, tensor.abs().max().item<double>());
  EXPECT_GT(size, 1e-3);
}

// The saved folder is a model of its own: it samples at the student's levels, what the student samples.
TEST_F(Distilled, TheSavedFolderSamplesAsTheStudent) {
  for (const bool lora : {false, true}) {
    Distillation d(config(lora), ground_.context());
    stir(d.student(), 1);
    const fs::path folder = scratch_ / (lora ? "lora" : "full");
    d.save(folder, "pcm", {{"iterations", 7}});
    const NoGrad no_grad;
    const Batch batch = load_range(ground_.data, 0, kSome, 0);
    const Tensor ids = at::arange(kSome), x_T = pipelines::initial_noise(ids, {4, 8, 8}, 9);
    const std::vector<Tensor> rungs = d.student_x0(d.conditions(batch), x_T.to(at::kDouble), {});
    ASSERT_EQ(rungs.size(), 2u);

    const pipelines::DiffusionModel m = pipelines::load_diffusion_model(folder);
    pipelines::DrawRequest r;
    r.conditional = (*m.conditioner)({.labels = batch.labels, .micro = batch.micro});
    r.sampling = m.sampling, r.sampling.steps = 2, r.sampling.tokens = 64;
    r.plan = diffusion::make_plan(m.schedule, r.sampling);
    EXPECT_NEAR(r.plan.sigmas.at(1), 0.7, 1e-6);
    r.ids = ids, r.seed = 9, r.channels = 4, r.height = r.width = 8;
    const Tensor drawn = pipelines::draw_latents(*m.unet, m.schedule, m.prediction, r).latents;
    EXPECT_LE((drawn - rungs.back()).abs().max().item<double>(), 2e-4 * drawn.abs().max().item<double>());

    const Json facts = read_distillation(folder);
    EXPECT_EQ(facts.at("method"), "pcm");
    EXPECT_EQ(facts.at("steps"), 2);
    EXPECT_EQ(facts.at("timesteps"), (std::vector<double>{1000, 700}));
    EXPECT_EQ(facts.at("cfg_scale"), 1.0);
    EXPECT_EQ(facts.at("training").at("iterations"), 7);
    EXPECT_EQ(facts.at("lora").is_null(), !lora);
    EXPECT_EQ(facts.at("teacher_sha256").get<std::string>().size(), 64u);
    EXPECT_EQ(fs::exists(folder / "adapter" / "adapter_model.safetensors"), lora);
  }
}

TEST_F(Distilled, ASavedStudentIsTheStartOfAnother) {
  for (const bool lora : {false, true}) {
    const fs::path folder = scratch_ / "first";
    fs::remove_all(folder);
    Tensor expected;
    {
      Distillation d(config(lora), ground_.context());
      stir(d.student(), 1);
      const NoGrad no_grad;
      const Input in = input(d);
      expected = d.student()(in.x, in.t, in.c);
      d.save(folder, "pcm", Json::object());
    }
    for (const bool again : {false, true}) {
      if (again && !lora) continue;
      DistillationConfig c = config(again);
      c.start = folder.string();
      Distillation d(c, ground_.context());
      const auto fake = d.add("fake_score");
      const NoGrad no_grad;
      const Input in = input(d);
      const double scale = expected.abs().max().item<double>();
      EXPECT_LE((d.student()(in.x, in.t, in.c) - expected).abs().max().item<double>(), 1e-5 * scale);
      EXPECT_TRUE((*fake)(in.x, in.t, in.c).equal(d.teacher(in.x, in.t, in.c))) << "further networks start as the teacher";
      EXPECT_GT((d.teacher(in.x, in.t, in.c) - expected).abs().max().item<double>(), 1e-3 * scale);
    }
  }
}

TEST_F(Distilled, AStartThatDoesNotSuitIsNamed) {
  make_teacher(scratch_ / "other", {.noise = 2});
  make_teacher(scratch_ / "wide", {.channels = 12});
  make_teacher(scratch_ / "epsilon", {.prediction = "epsilon"});
  const auto student_of = [&](const std::string& teacher, bool lora) {
    DistillationConfig c = config(lora);
    c.teacher = (scratch_ / teacher).string();
    if (teacher == "epsilon") c.student.timesteps = {999, 499};
    const fs::path folder = scratch_ / (teacher + (lora ? "-lora" : "-full"));
    Distillation(c, ground_.context()).save(folder, "pcm", Json::object());
    return folder.string();
  };
  const auto says = [&](const std::string& start, bool lora, int64_t rank = 2) {
    DistillationConfig c = config(lora);
    c.start = start;
    if (lora) c.lora.rank = rank;
    return message_of<ConfigError>([&] { Distillation d(c, ground_.context()); });
  };
  const std::string epsilon = student_of("epsilon", false), other = student_of("other", true), own = student_of("teacher", true);
  EXPECT_THAT(says(epsilon, false), AllOf(HasSubstr("predicts 'epsilon'"), HasSubstr("predicts 'flow_prediction'")));
  EXPECT_THAT(says(student_of("wide", false), false), AllOf(HasSubstr("another form"), HasSubstr("block_out_channels: [12,12] and [8,8]")));
  EXPECT_THAT(says(other, true), AllOf(HasSubstr("is an adapter on another teacher"), HasSubstr(other)));
  EXPECT_THAT(says(other, false), HasSubstr("is a student of another teacher"));  // its class table is another one
  EXPECT_THAT(says(student_of("teacher", false), true), HasSubstr("has no adapter (model/adapter)"));
  EXPECT_THAT(says(own, true, 3), AllOf(HasSubstr("rank 2"), HasSubstr("trainer.lora.rank=2")));
  EXPECT_EQ(says(own, true), "(no error)");
}

TEST_F(Distilled, BadNetworksAndRungsAreNamed) {
  const auto says = [&](const std::function<void(DistillationConfig&)>& change) {
    DistillationConfig c = config(true);
    change(c);
    return message_of<ConfigError>([&] { Distillation d(c, ground_.context()); });
  };
  EXPECT_THAT(says([](auto& c) { c.lora.targets = {"to_nothing"}; }), HasSubstr("to_nothing"));
  EXPECT_THAT(says([](auto& c) { c.student.timesteps = {1200, 700}; }), HasSubstr("outside the schedule's [0, 1000]"));
  EXPECT_THAT(message_of<DataError>([&] {
                DistillationConfig c = config(true);
                c.teacher = "/nonexistent";
                Distillation d(c, ground_.context());
              }), HasSubstr("/nonexistent"));
}

TEST_F(Distilled, ACheckpointKnowsItsTeacher) {
  std::map<std::string, TensorMap> files;
  Distillation d(config(true), ground_.context());
  d.add_state(files);
  d.check_state(files);
  stir(d.student(), 1);
  d.check_state(files);
  make_teacher(scratch_ / "other", {.noise = 2});
  DistillationConfig c = config(true);
  c.teacher = (scratch_ / "other").string();
  Distillation other(c, ground_.context());
  EXPECT_THAT(message_of<DataError>([&] { other.check_state(files); }), HasSubstr("is not the model this run distils"));
}

TEST_F(Distilled, PicturesHaveTheTeacherAndEveryRung) {
  DistillationConfig c = config(true);
  c.precision = Precision::float32;
  c.pictures = {.columns = 10, .rows = 2, .batch_size = 2, .teacher_steps = 3, .cfg_scale = 1.5};
  Distillation d(c, ground_.context());
  const Tensor grid = d.sample_grid(1);  // 3 classes; twice a row of the teacher and two of the student; 16 x 16, twice as large, 2 between
  EXPECT_EQ(grid.sizes(), (std::vector<int64_t>{1, 6 * 34 + 2, 3 * 34 + 2}));
  EXPECT_TRUE(grid.equal(d.sample_grid(1)));
  const Tensor before = grid.narrow(1, 0, 36), after_stir = (stir(d.student(), 1), d.sample_grid(1));
  EXPECT_TRUE(after_stir.narrow(1, 0, 36).equal(before)) << "the teacher's row does not move";
  EXPECT_FALSE(after_stir.narrow(1, 36, 34).equal(grid.narrow(1, 36, 34))) << "the student's does";
  EXPECT_FALSE(grid.narrow(1, 0, 34).equal(grid.narrow(1, 102, 34))) << "other noise below";
}

}  // namespace
}  // namespace fewstep
