// The trainer `dmd2` in the test's own process: who moves in which turn, a step against its transcription, resume at every phase,
// adapters against copies.
#include "trainers/dmd2.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "src/io/checkpoint.h"
#include "src/io/safetensors.h"
#include "src/nn/module.h"
#include "src/pipelines/diffusion_model.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "tests/support/message_of.h"
#include "tests/trainers/dmd2_bench.h"
#include "tests/trainers/feature_gan_bench.h"
#include "trainers/loop.h"
#include "trainers/trainable_set.h"

namespace fewstep {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;
using testing::differing_tensors;
using testing::Dmd2Bench;
using testing::dmd2_yaml;
using testing::epsilon_teacher;
using testing::flow_teacher;
using testing::sample_teacher;
using testing::TrainerState;
using testing::weight_distance;

constexpr const char* kLora = "lora: {rank: 2, alpha: 2}\n";
const std::string kBetween =
    "critic: {updates: 2, rule: between, optimizer: {lr: 2.0e-3, beta1: 0, beta2: 0.9, clip_norm: 10, schedule: constant}}\n";

const std::filesystem::path& gan_features() {
  struct Features {
    testing::ScratchFolder folder{"dmd2-features"};
    Features() { testing::write_conv_features(folder.path()); }
  };
  static const Features features;
  return features.folder.path();
}
std::string gan_yaml(const std::string& more = {}) {
  return fmt::format("gan: {{features: {}, real_share: 1, heads: {{norm: group, norm_groups: 4, projection_width: 8, kernel: 3}}, "
                     "optimizer: {{lr: 1.0e-2}}{}}}\n", gan_features().string(), more);
}

// A class is one token: attention to it has nothing to choose, and what would choose (queries, the norm before them, keys) has no
// gradient but rounding.
bool idle(const std::string& name) {
  const auto has = [&](const char* part) { return name.find(part) != std::string::npos; };
  return has("attn2.to_q") || has("attn2.to_k") || (has("transformer_blocks") && has(".norm2."));
}

// Of networks and optimisers: what the monitors remember moves in every iteration.
std::vector<std::string> moved(const TrainerState& a, const TrainerState& b) {
  std::vector<std::string> out = differing_tensors(a, b);
  std::erase_if(out, [](const std::string& name) { return name.starts_with("dmd2: "); });
  return out;
}

// In the student's turn only the student's weights and moments change, in the fake score's only its own; the teacher never.
TEST(Dmd2, EachTurnMovesItsOwnNetwork) {
  for (const std::string& how : {std::string(), std::string(kLora)}) {
    Dmd2Bench bench(dmd2_yaml(flow_teacher(), kBetween + how));
    const TrainerState start = bench.state();
    const auto of_student = bench.step(0);
    const TrainerState one = bench.state();
    EXPECT_THAT(moved(start, one), AllOf(Each(AllOf(HasSubstr("student."), ::testing::Not(HasSubstr("fake_score")))), ::testing::Not(IsEmpty())));
    const auto of_critic = bench.step(1);
    const TrainerState two = bench.state();
    EXPECT_THAT(moved(one, two), AllOf(Each(HasSubstr("fake_score.")), ::testing::Not(IsEmpty())));
    EXPECT_TRUE(start.at("teacher").at("sums").equal(two.at("teacher").at("sums")));
    EXPECT_TRUE(of_student.contains("dmd_loss") && of_student.contains("grad_norm") && !of_student.contains("critic_loss"));
    EXPECT_TRUE(of_critic.contains("critic_loss") && of_critic.contains("critic_grad_norm") && !of_critic.contains("dmd_loss"));
    // Every weight of the network in turn gets a gradient, but for what an adapter's zero B hides: A in its first step.
    int64_t still = 0, all = 0;
    for (const auto& [name, tensor] : one.at("weights"))
      if (name.starts_with("student.") && !idle(name) && !(how == kLora && name.ends_with("lora_A.weight"))) {
        ++all;
        if (tensor.equal(start.at("weights").at(name))) ++still, std::printf("%s did not move\n", name.c_str());
      }
    EXPECT_EQ(still, 0) << "of " << all << how;
  }
}

TEST(Dmd2, BothRulesAreCounted) {
  const auto updates = [](const std::string& rule) {
    Dmd2Bench bench(dmd2_yaml(flow_teacher(), fmt::format("critic: {{updates: 3, rule: {}}}\n", rule)));
    for (int64_t i = 0; i < 6; ++i) bench.step(i);
    const TensorMap o = bench.state().at("optimizer");
    return std::pair(o.at("student.updates").flatten()[0].item<double>(), o.at("fake_score.updates").flatten()[0].item<double>());
  };
  EXPECT_EQ(updates("every_iteration"), std::pair(2.0, 6.0));
  EXPECT_EQ(updates("between"), std::pair(2.0, 4.0));
}

// The algorithm box again, by hand: sums of products on the raw outputs of networks, random numbers from their streams.
class Transcription {
 public:
  Transcription(Dmd2Bench& bench, bool flow) : config_(bench.root.config), flow_(flow), context_(bench.context()), distillation_(config_.distillation, context_),
        fake_(distillation_.add("fake_score")), student_set_("student", distillation_.student().parameters(), config_.optimizer, *bench.world, 100),
        fake_set_("fake_score", fake_->parameters(), config_.critic.optimizer, *bench.world, 100) {}

  void step(const Batch& batch, int64_t step) {
    ids_ = batch.ids, step_ = step;
    const auto told = distillation_.conditions(batch), untold = distillation_.null_conditions(batch);
    const bool turn = step % 2 == 0;
    const Tensor x0 = generate(told, turn);
    if (turn) {
      student_loss(x0, told, untold).backward();
      expect_gradients();
      student_set_.step(step);
    }
    const auto [x_t, t, e] = noised(x0.detach(), Stream::critic, 0.0, flow_ ? 1.0 : 0.999);
    const Tensor output = (*fake_)(x_t, t, told), target = flow_ ? e - x0.detach() : e;
    const Tensor loss = at::mse_loss(output, target);
    critic_loss = loss.item<double>();
    loss.backward();
    fake_set_.step(step);
  }
  double dmd_loss = 0, critic_loss = 0;
  int64_t rung = 0;
  TrainerState weights() const {
    TrainerState out;
    student_set_.add_state(out), fake_set_.add_state(out);
    return out;
  }

 private:
  double level(int64_t k) const { return distillation_.schedule().timestep(k); }
  Tensor wide(const Tensor& x) const { return x.view({-1, 1, 1, 1}); }
  Tensor alpha(const Tensor& t) const { return wide(flow_ ? 1.0 - t / 1000.0 : distillation_.schedule().schedule().alphas_cumprod().index_select(0, t).to(at::kDouble).sqrt()); }
  Tensor sigma(const Tensor& t) const { return flow_ ? wide(t / 1000.0) : (1.0 - alpha(t).square()).sqrt(); }
  Tensor x0_of(const Tensor& output, const Tensor& x, const Tensor& t) const { return flow_ ? x - sigma(t) * output : (x - sigma(t) * output) / alpha(t); }
  Tensor all(double t) const { return at::full({ids_.size(0)}, t, flow_ ? at::kDouble : at::kLong); }

  Tensor generate(const models::UNetConditions& told, bool graph) {
    const StudentSchedulePlan s = plan();
    rung = s.rung;
    const Tensor noise = normal_by_id(ids_, {rung + 1, 4, 8, 8}, 3, Stream::rollout, step_).to(at::kDouble);
    Tensor x = noise.select(1, 0);
    for (int64_t k = 0; k < rung; ++k) {
      const NoGrad no_grad;
      const Tensor t = all(level(k)), next = all(level(k + 1));
      const Tensor x0 = x0_of(distillation_.student()(x, t, told), x, t);
      const Tensor e = s.ode ? (x - alpha(t) * x0) / sigma(t) : noise.select(1, k + 1);
      x = alpha(next) * x0 + sigma(next) * e;
    }
    const Tensor t = all(level(rung));
    if (graph) return x0_of(distillation_.student()(x, t, told), x, t);
    const NoGrad no_grad;
    return x0_of(distillation_.student()(x, t, told), x, t);
  }
  struct StudentSchedulePlan {
    int64_t rung;
    bool ode;
  };
  StudentSchedulePlan plan() const {
    const double u = uniform_by_id(at::zeros({1}, at::kLong), 1, 3, Stream::rung, step_).item<double>();
    return {static_cast<int64_t>(u * static_cast<double>(distillation_.schedule().steps())), config_.distillation.student.student == diffusion::StudentKind::ode};
  }

  struct Noised {
    Tensor x_t, t, e;
  };
  // Shares of the axis; t uniform, for the beta schedule a whole number of low .. high.
  Noised noised(const Tensor& x0, Stream stream, double low, double high) const {
    const Tensor e = normal_by_id(ids_, {4, 8, 8}, 3, stream, step_).to(at::kDouble);
    const Tensor u = uniform_by_id(ids_, at::full_like(ids_, 512), 1, 3, stream, step_).select(1, 0).to(at::kDouble);  // behind 256 normals
    const double a = 1000.0 * low, b = 1000.0 * high;
    const Tensor t = flow_ ? a + (b - a) * u : (a + (u * (b - a + 1.0)).floor()).to(at::kLong);
    return {alpha(t) * x0 + sigma(t) * e, t, e};
  }

  Tensor student_loss(const Tensor& x0, const models::UNetConditions& told, const models::UNetConditions& untold) {
    Tensor g;
    {
      const NoGrad no_grad;
      const auto [x_t, t, e] = noised(x0, Stream::score, 0.02, 0.98);
      const Tensor c = distillation_.teacher(x_t, t, told), u = distillation_.teacher(x_t, t, untold);
      const Tensor xr = x0_of(u + 2.0 * (c - u), x_t, t), xf = x0_of((*fake_)(x_t, t, told), x_t, t);
      g = (xf - xr) / (x0 - xr).abs().mean({1, 2, 3}, true);
    }
    const Tensor loss = 0.5 * at::mse_loss(x0, (x0 - g).detach());
    dmd_loss = loss.item<double>();
    return loss;
  }

  // After the student's backward: all of its gradients, none of the fake score's, the teacher has none at all.
  void expect_gradients() const {
    for (const auto& [name, tensor] : student_set_.parameters()) EXPECT_TRUE(idle(name) || tensor.grad().abs().max().item<double>() > 0.0) << name;
    for (const auto& [name, tensor] : fake_set_.parameters()) EXPECT_EQ(tensor.grad().abs().max().item<double>(), 0.0) << name;
    for (const auto& [name, tensor] : distillation_.model().unet->parameters()) EXPECT_FALSE(tensor.grad().defined()) << name;
  }

  const Dmd2Config& config_;
  const bool flow_;
  const TrainContext context_;
  Distillation distillation_;
  std::unique_ptr<DistilledNetwork> fake_;
  TrainableSet student_set_, fake_set_;
  Tensor ids_;
  int64_t step_ = 0;
};

void expect_transcribed(const std::filesystem::path& teacher, bool flow, const std::string& student) {
  Dmd2Bench bench(dmd2_yaml(teacher, "student: " + student + "\n"));
  Transcription by_hand(bench, flow);
  std::set<int64_t> rungs;
  for (int64_t step = 0; step < 6; ++step) {
    const auto metrics = bench.step(step);
    by_hand.step(bench.batch(step), step);
    rungs.insert(by_hand.rung);
    EXPECT_EQ(metrics.at("rung"), static_cast<double>(by_hand.rung));
    EXPECT_NEAR(metrics.at("critic_loss"), by_hand.critic_loss, 1e-10) << step;
    if (step % 2 == 0) {
      EXPECT_NEAR(metrics.at("dmd_loss"), by_hand.dmd_loss, 1e-10) << step;
    }
  }
  EXPECT_EQ(rungs.size(), 2u) << "one rung only: take other steps";
  const TrainerState a = by_hand.weights(), b = bench.state();
  for (const char* prefix : {"student.", "fake_score."}) EXPECT_LT(weight_distance(a, b, prefix), 1e-11) << student << prefix;
}

TEST(Dmd2, AStepIsItsTranscription) {
  expect_transcribed(flow_teacher(), true, "{timesteps: [1000, 700], student: ode}");
  expect_transcribed(flow_teacher(), true, "{timesteps: [1000, 700], student: stochastic}");
  expect_transcribed(epsilon_teacher(), false, "{steps: 2, student: ode}");
  expect_transcribed(epsilon_teacher(), false, "{steps: 2, student: stochastic}");
}

TEST(Dmd2, MicroBatchesDoNotChangeTheResult) {
  for (const std::string& how : {std::string(), std::string(kLora), gan_yaml()}) {
    Dmd2Bench whole(dmd2_yaml(flow_teacher(), how)), parts(dmd2_yaml(flow_teacher(), how), 4);
    std::map<std::string, double> a, b;
    for (int64_t i = 0; i < 5; ++i) a = whole.step(i), b = parts.step(i);
    for (const auto& [name, value] : a) EXPECT_NEAR(b.at(name), value, 1e-9 * (1.0 + std::abs(value))) << name;
    EXPECT_LT(weight_distance(whole.state(), parts.state(), ""), 1e-11);
  }
}

TEST(Dmd2Gan, EachTurnMovesItsOwnNetworks) {
  Dmd2Bench bench(dmd2_yaml(flow_teacher(), kBetween + gan_yaml()));
  const TrainerState start = bench.state();
  const auto of_student = bench.step(0);
  const TrainerState one = bench.state();
  EXPECT_THAT(moved(start, one), Each(HasSubstr("student.")));
  EXPECT_GT(of_student.at("gradient_gan"), 0.0);
  EXPECT_NEAR(of_student.at("gradient_ratio"), of_student.at("gradient_dmd") / of_student.at("gradient_gan"), 1e-12);
  const auto of_critic = bench.step(1);
  const std::vector<std::string> last = moved(one, bench.state());
  EXPECT_THAT(last, Each(::testing::Not(HasSubstr("student."))));
  EXPECT_GT(std::count_if(last.begin(), last.end(), [](const std::string& name) { return name.find("fake_score.") == std::string::npos; }), 0);
  EXPECT_TRUE(of_critic.contains("gan_accuracy_real") && of_critic.contains("gan_accuracy_fake"));
}

// beta1 = 0: the first moment is the gradient. The GAN's is put in at x0 beside DMD's, and is linear in its weight.
TEST(Dmd2Gan, TheStudentsGradientIsTheSumOfBoth) {
  const std::string plain = "optimizer: {lr: 1.0e-3, beta1: 0, beta2: 0.9, clip_norm: 0, schedule: constant}\n";
  const auto gradient = [&](const std::string& more) {
    Dmd2Bench bench(dmd2_yaml(flow_teacher(), plain + more));
    bench.step(0);
    std::vector<Tensor> out;
    const TrainerState state = bench.state();
    for (const auto& [name, tensor] : state.at("optimizer"))
      if (name.starts_with("student.exp_avg.")) out.push_back(tensor.flatten().to(at::kDouble));
    return at::cat(out);
  };
  const Tensor none = gradient(""), one = gradient(gan_yaml()), three = gradient(gan_yaml(", weight: 3")), later = gradient(gan_yaml(", start_step: 5"));
  EXPECT_GT((one - none).norm().item<double>(), 1e-3 * none.norm().item<double>());
  EXPECT_LT(((three - none) - 3.0 * (one - none)).norm().item<double>(), 1e-9 * (one - none).norm().item<double>());
  EXPECT_TRUE(later.equal(none));
}

// Whatever the phase of the cycle, another process goes on from the files bit for bit: weights, moments, EMA, monitors.
TEST(Dmd2, ResumesBitForBitAtEveryPhase) {
  for (const std::string& how : {std::string(), std::string(kLora), gan_yaml()}) {
    const std::string yaml = dmd2_yaml(flow_teacher(), how + "align: 0.97\ncritic: {updates: 3, rule: between, lead: 1}\n"
                                                             "monitor: {every: 1, diversity_every: 2, prompts: 2, samples: 2}\n");
    Dmd2Bench whole(yaml);
    std::vector<TrainerState> after = {whole.state()};
    for (int64_t i = 0; i < 6; ++i) whole.step(i), after.push_back(whole.state());
    for (size_t k = 1; k < 6; ++k) {
      Dmd2Bench resumed(yaml);
      resumed.trainer->load_state(after[k]);
      for (auto i = static_cast<int64_t>(k); i < 6; ++i) resumed.step(i);
      EXPECT_THAT(differing_tensors(after.back(), resumed.state()), IsEmpty()) << "from " << k << how;
    }
  }
}

// B is 0: an adapter starts as the base, and both ways have one mathematics. One base in memory instead of three.
TEST(Dmd2, AdaptersOnOneBaseStartAsThreeCopiesDo) {
  Dmd2Bench copies(dmd2_yaml(flow_teacher())), adapters(dmd2_yaml(flow_teacher(), kLora));
  const auto a = copies.step(0), b = adapters.step(0);
  for (const char* name : {"dmd_loss", "critic_loss", "score_gap"}) EXPECT_NEAR(a.at(name), b.at(name), 1e-12) << name;
  const auto elements = [](const TrainerState& s) {
    int64_t n = 0;
    for (const auto& [name, tensor] : s.at("weights")) n += tensor.numel();
    return n;
  };
  const int64_t base = elements(copies.state()) / 2;  // student and fake score; the teacher is the third
  std::printf("parameters resident: %lld (three copies), %.3f of one base with two adapters of rank 2\n", static_cast<long long>(3 * base),
              static_cast<double>(base + elements(adapters.state())) / static_cast<double>(base));
}

// The configuration for full scale: SDXL with adapters of its rank on one base, counted on the meta device.
TEST(Dmd2, OneBaseWithTwoAdaptersOfSdxlIsHardlyMoreThanOneBase) {
  const auto folder = std::filesystem::path(FEWSTEP_SOURCE_DIR) / "configs";
  const auto teacher = config::load<RunConfig>(folder / "sdxl/full/sdxl_base.yaml");
  const auto run = config::load<RunConfig>(folder / "distill/full/dmd2_sdxl_lora.yaml");
  models::UNet2DConfig c = dynamic_cast<const DiffusionConfig&>(*teacher.trainer).start.unet;
  c.cross_attention_dim = 2048, c.addition_embed_type = "text_time", c.projection_class_embeddings_input_dim = 2816;
  const nn::BuildScope meta(at::kMeta);
  models::UNet2DConditionModel unet(c);
  const int64_t base = unet.parameter_count();
  const LoraConfig& lora = dynamic_cast<const Dmd2Config&>(*run.trainer).distillation.lora;
  int64_t more = 0;
  for (const char* name : {"student", "fake_score"}) more += count_elements(Tuning(unet, lora, name, 1).parameters());
  std::printf("SDXL: %lld parameters, %lld of two adapters of rank %lld: %.4f of one base; three copies: 3\n", static_cast<long long>(base),
              static_cast<long long>(more), static_cast<long long>(lora.rank), static_cast<double>(base + more) / static_cast<double>(base));
  EXPECT_EQ(base, 2567463684);
  EXPECT_LE(static_cast<double>(base + more), 1.15 * static_cast<double>(base));
}

// Between the student's forward and backward the fake score and the teacher run with other adapters: activations that are made again
// in backward must still be the student's.
TEST(Dmd2, RecomputeSurvivesTheSwitchOfAdapters) {
  for (const std::string& how : {std::string(), std::string(kLora)}) {
    Dmd2Bench kept(dmd2_yaml(flow_teacher(), how)), again(dmd2_yaml(flow_teacher(), how + "recompute: true\n"));
    for (int64_t i = 0; i < 4; ++i) kept.step(i), again.step(i);
    const double d = weight_distance(kept.state(), again.state(), "");
    std::printf("recompute%s, 4 iterations, float64: |dw| / |w| = %.2e\n", how.empty() ? "" : ", adapters", d);
    EXPECT_LT(d, 1e-11);
  }
}

TEST(Dmd2, AlignmentMovesTheFakeScoreTowardsTheStudent) {
  Dmd2Bench plain(dmd2_yaml(flow_teacher(), kBetween)), aligned(dmd2_yaml(flow_teacher(), kBetween + "align: 0.75\n"));
  plain.step(0), aligned.step(0);
  const TensorMap a = plain.state().at("weights"), b = aligned.state().at("weights");
  for (const auto& [name, tensor] : a) {
    if (!name.starts_with("fake_score.")) {
      EXPECT_TRUE(tensor.equal(b.at(name))) << name;
      continue;
    }
    const Tensor student = a.at("student." + name.substr(11));
    EXPECT_LT((b.at(name) - (0.75 * tensor + 0.25 * student)).abs().max().item<double>(), 1e-14) << name;
  }
}

TEST(Dmd2, MonitorsStandInTheMetrics) {
  Dmd2Bench bench(dmd2_yaml(flow_teacher(), "monitor: {every: 1, bins: 2, diversity_every: 2, prompts: 3, samples: 3}\n"));
  const auto first = bench.step(0), second = bench.step(1), third = bench.step(2);
  EXPECT_EQ(first.at("diversity"), 1.0);
  EXPECT_EQ(first.at("collapsed"), 0.0);
  EXPECT_FALSE(second.contains("diversity"));
  EXPECT_NE(third.at("diversity"), 1.0);
  EXPECT_NEAR(third.at("diversity"), third.at("sample_distance") / first.at("sample_distance"), 1e-12);
  EXPECT_FALSE(first.contains("critic_lag"));  // the last turn of a cycle is looked at
  EXPECT_NEAR(second.at("critic_lag"), second.at("critic_loss") / second.at("teacher_loss"), 1e-12);
  EXPECT_FALSE(second.contains("score_gap"));
  EXPECT_TRUE(first.contains("score_gap") && (first.contains("score_gap[t<0.5]") || first.contains("score_gap[t<1.0]")));
  EXPECT_FALSE(first.contains("gradient_ratio"));
}

// A student of weights 0 that predicts x0 draws one picture whatever its noise.
TEST(Dmd2, ACollapseIsReportedWhileItHappens) {
  Dmd2Bench bench(dmd2_yaml(sample_teacher(), "student: {steps: 2, student: ode}\nmonitor: {every: 1, diversity_every: 2, prompts: 3, samples: 3}\n"));
  bench.step(0), bench.step(1);
  TrainerState state = bench.state();
  for (auto& [name, tensor] : state.at("weights"))
    if (name.starts_with("student.")) tensor.zero_();
  bench.trainer->load_state(state);
  ::testing::internal::CaptureStderr();
  const auto after = bench.step(2);
  const std::string said = ::testing::internal::GetCapturedStderr();
  EXPECT_NEAR(after.at("diversity"), 0.0, 1e-9);
  EXPECT_EQ(after.at("collapsed"), 1.0);
  EXPECT_THAT(said, AllOf(HasSubstr("iteration 2: diversity is 0, below its limit 0.5"), HasSubstr("the student is collapsing")));
}

TEST(Dmd2, ValidationIsTheSameEachTimeAndForEveryCut) {
  Dmd2Bench bench(dmd2_yaml(flow_teacher()));
  const NoGrad no_grad;
  const auto validate = [&](int64_t part) {
    Metrics m;
    for (int64_t i = 0; i < 24; i += part) m.merge(bench.trainer->validate(load_range(bench.data, i, i + part, 0)));
    return m.reduce(*bench.world);
  };
  const auto once = validate(24), parts = validate(6);
  for (const char* name : {"score_gap", "critic_loss", "teacher_loss"}) EXPECT_NEAR(once.at(name), parts.at(name), 1e-9) << name;
}

TEST(Dmd2, SavesAStudentThatSamplesAtItsRungs) {
  Dmd2Bench bench(dmd2_yaml(flow_teacher(), kLora));
  for (int64_t i = 0; i < 3; ++i) bench.step(i);
  const testing::ScratchFolder folder("dmd2");
  bench.trainer->save_model(folder / "model");
  const Json facts = read_distillation(folder / "model");
  EXPECT_EQ(facts.at("method"), "dmd2");
  EXPECT_EQ(facts.at("training").at("guidance"), 2.0);
  EXPECT_EQ(facts.at("training").at("critic_updates_per_student_update"), 2);
  const auto loaded = pipelines::load_diffusion_model(folder / "model");
  EXPECT_TRUE(bench.trainer->sample_grid(1).defined());
  EXPECT_EQ(loaded.prediction, diffusion::Prediction::flow);
}

TEST(Dmd2, CountsItsForwardPasses) {
  const double unit = [] {
    Dmd2Bench bench(dmd2_yaml(flow_teacher(), "cfg_scale: 1\nstudent: {timesteps: [1000]}\ncritic: {updates: 1}\n"));
    return bench.trainer->flops_per_sample() / 8.0;  // student 3, fake score 1, teacher 1, its training 3
  }();
  const auto passes = [&](const std::string& more) { return Dmd2Bench(dmd2_yaml(flow_teacher(), more)).trainer->flops_per_sample() / unit; };
  // Two rungs: half a pass of rollout. A cycle of two: (0.5 + 3 + 1 + 2) + (0.5 + 1) + 2 x 3.
  EXPECT_NEAR(passes("critic: {updates: 2}\n"), 14.0 / 2, 1e-9);
  EXPECT_NEAR(passes("critic: {updates: 2, rule: between}\n"), 11.0 / 2, 1e-9);
  EXPECT_NEAR(passes("critic: {updates: 2}\nlora: {rank: 2}\n"), 11.0 / 2, 1e-9);
  EXPECT_NEAR(passes("critic: {updates: 2}\nrecompute: true\n"), 17.0 / 2, 1e-9);
}

TEST(Dmd2, ErrorsNameTheKey) {
  const auto says = [](const std::string& more) { return message_of<ConfigError>([&] { Dmd2Bench(dmd2_yaml(flow_teacher(), more)); }); };
  EXPECT_THAT(says("align: 1.5\n"), HasSubstr("align"));
  EXPECT_THAT(says("critic: {optimizer: {ema_decay: 0.9}}\n"), HasSubstr("ema_decay must be 0"));
  EXPECT_THAT(says("critic: {updates: 1, rule: between}\n"), HasSubstr("never have a turn"));
  EXPECT_THAT(says("score: {min: 0.5, max: 0.2}\n"), HasSubstr("must be above min"));
  EXPECT_THAT(says("student: {timesteps: [1000, 1200]}\n"), HasSubstr("rung 1 is 1200, outside the schedule's"));
  EXPECT_THAT(says("student: {timesteps: [700, 900]}\n"), HasSubstr("must fall"));
  EXPECT_THAT(says("lora: {rank: 2, targets: [to_nothing]}\n"), HasSubstr("to_nothing"));
  EXPECT_THAT(message_of<ConfigError>([] { Dmd2Bench(dmd2_yaml(epsilon_teacher(), "student: {steps: 7}\n")); }), HasSubstr("7 steps do not divide the 1000"));
  EXPECT_THAT(message_of<ConfigError>([] { config::parse<testing::Dmd2ConfigRoot>("cfg_scale: 2\n"); }), HasSubstr("teacher: must be given"));
  const testing::ScratchFolder empty("dmd2");
  EXPECT_THAT(message_of<DataError>([&] { Dmd2Bench(dmd2_yaml(flow_teacher(), fmt::format("critic: {{start: {}}}\n", empty.path().string()))); }),
              AllOf(HasSubstr("trainer.critic.start"), HasSubstr("no checkpoint")));
  Dmd2Bench bench(dmd2_yaml(flow_teacher()));
  EXPECT_THAT(message_of<DataError>([&] { bench.trainer->load_state({}); }), HasSubstr("teacher.safetensors"));
}

}  // namespace
}  // namespace fewstep
