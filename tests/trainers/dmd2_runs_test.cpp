// DMD2 as a user runs it: ranks, resume after a kill, hand-over from one stage to the next, warnings, faults. Tiny networks on
// Fashion-MNIST, seconds each.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "src/base/files.h"
#include "src/base/json.h"
#include "src/io/safetensors.h"
#include "src/tensor/ops.h"
#include "tests/trainers/diffusion_runs.h"

namespace fewstep {
namespace {
namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::Child;
using testing::DiffusionRuns;
using testing::Finished;

constexpr const char* kDmd2Run = R"(
name: dmd2
seed: 5
threads: 1
data: {kind: fashion_mnist, image_size: 32}
loop: {steps: 6, batch_size: 8, log_every: 1, validation_samples: 16, workers: 1}
trainer:
  kind: dmd2
  teacher: ROOT/teacher
  student: {timesteps: [1000, 700], student: ode}
  cfg_scale: 2
  optimizer: {lr: 1.0e-3, beta1: 0, ema_decay: 0.9, schedule: constant}
  critic: {updates: 3, optimizer: {lr: 2.0e-3, beta1: 0, schedule: constant}}
  monitor: {every: 1, diversity_every: 3, prompts: 3, samples: 2}
  pictures: {columns: 2, teacher_steps: 2}
)";

class Dmd2Runs : public DiffusionRuns {
 protected:
  static void SetUpTestSuite() {
    DiffusionRuns::SetUpTestSuite();
    write_config("dmd2.yaml", kDmd2Run);
    run("text.yaml", "teacher", {"loop.steps=20", "trainer.optimizer.lr=1.0e-2"});
  }
  static size_t count(const std::string& text, const std::string& what) {
    size_t n = 0;
    for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++n;
    return n;
  }
};

// Rows of the global batch are shared out over ranks and micro-steps; the rung is one for all.
TEST_F(Dmd2Runs, TwoProcessesEqualOne) {
  for (const auto& [name, how] : {std::pair("copies", "trainer.student.student=stochastic"), std::pair("adapters", "trainer.lora.rank=2")}) {
    const std::vector<std::string> shared = {"trainer.precision=float64", "loop.steps=20", how};
    const auto with = [&](std::vector<std::string> more) {
      more.insert(more.begin(), shared.begin(), shared.end());
      return more;
    };
    const std::string one = std::string(name) + "-one", two = std::string(name) + "-two", parts = std::string(name) + "-parts";
    run("dmd2.yaml", one, shared);
    run("dmd2.yaml", two, with({"--nproc", "2"}));
    run("dmd2.yaml", parts, with({"loop.accumulate=4"}));
    for (const std::string& other : {two, parts}) {
      const double d = relative_difference(weights(one, 20), weights(other, 20));
      std::printf("%s against %s, 20 iterations, float64: |dw| / |w| = %.2e\n", one.c_str(), other.c_str(), d);
      EXPECT_LE(d, 1e-10);
      EXPECT_EQ(losses(one, "rung"), losses(other, "rung")) << other;
      for (const char* key : {"diversity", "score_gap", "critic_lag"})
        EXPECT_NEAR(losses(one, key).back(), losses(other, key).back(), 1e-8) << key << " " << other;
    }
    EXPECT_THAT(losses(one, "rung"), ::testing::AllOf(::testing::Contains(0.0), ::testing::Contains(1.0)));
  }
  run("dmd2.yaml", "other-seed", {"trainer.precision=float64", "loop.steps=20", "seed=6"});  // the control
  EXPECT_GT(relative_difference(weights("copies-one", 20), weights("other-seed", 20)), 1e-5);
}

// Checkpoints after 2 and 4 iterations of cycles of 3.
TEST_F(Dmd2Runs, AKilledRunGoesOnBitForBit) {
  kill_and_compare("dmd2.yaml", "whole", {});
  kill_and_compare("dmd2.yaml", "lora", {"trainer.lora.rank=2"});
}

// A run goes on from another one's student and fake score: nothing of either is lost.
TEST_F(Dmd2Runs, StudentAndFakeScoreAreHandedOver) {
  for (const std::string lora : {"0", "2"}) {
    const std::string first = "first-" + lora, second = "second-" + lora, cold = "cold-" + lora;
    run("dmd2.yaml", first, {"trainer.lora.rank=" + lora, "trainer.optimizer.ema_decay=0"});
    const std::vector<std::string> still = {"trainer.lora.rank=" + lora, "trainer.optimizer={lr: 1.0e-12, ema_decay: 0}", "loop.steps=1",
                                            "trainer.critic.optimizer.lr=1.0e-12", "trainer.start=" + (root() / first).string()};
    auto both = still;
    both.push_back("trainer.critic.start=" + (root() / first).string());
    run("dmd2.yaml", second, both);
    EXPECT_LT(relative_difference(weights(first, 6), weights(second, 1)), 1e-6) << lora;
    run("dmd2.yaml", cold, still);  // the control: the fake score is the teacher
    EXPECT_GT(relative_difference(weights(first, 6), weights(cold, 1)), 1e-5) << lora;
  }
  const Finished other = train("dmd2.yaml", "other-rank", {"trainer.lora.rank=3", "trainer.critic.start=" + (root() / "first-2").string()});
  EXPECT_EQ(other.code, 3) << other.output;
  EXPECT_THAT(other.output, HasSubstr("trainer.critic.start"));
}

TEST_F(Dmd2Runs, TheFolderSamplesAtTheTrainedRungs) {
  run("dmd2.yaml", "samples");
  EXPECT_TRUE(fs::exists(root() / "samples" / "samples" / "step-000000006.png"));
  const Json facts = read_json(model("samples", 6) / "distillation.json");
  EXPECT_EQ(facts.at("method"), "dmd2");
  EXPECT_EQ(facts.at("timesteps"), Json({1000.0, 700.0}));
  const Finished f = Child({FEWSTEP_BINARY, "sample", (root() / "samples").string(), "--prompt", "a dress", "--num", "2", "--out",
                            (root() / "drawn").string()}, root()).wait();
  ASSERT_EQ(f.code, 0) << f.output;
  EXPECT_TRUE(fs::exists(root() / "drawn" / "grid.png"));
}

TEST_F(Dmd2Runs, ALimitWarnsOnceAndTheRunGoesOn) {
  const Finished f = train("dmd2.yaml", "warned", {"loop.steps=12", "trainer.monitor.max_score_gap=1.0e-6"});
  ASSERT_EQ(f.code, 0) << f.output;
  EXPECT_EQ(count(f.output, "above its limit 1e-06"), 1u) << f.output;
  EXPECT_THAT(f.output, HasSubstr("score_gap"));
  EXPECT_EQ(losses("warned", "diversity").size(), 4u);
  EXPECT_EQ(losses("warned", "diversity").front(), 1.0);
}

TEST_F(Dmd2Runs, BadInputIsAnswered) {
  struct Case {
    std::vector<std::string> more;
    int code;
    std::string says;
  };
  const Case cases[] = {
      {{"trainer.optimizer={lr: 1.0e+30, clip_norm: 0}", "trainer.critic.optimizer={lr: 1.0e+30, clip_norm: 0}"}, 4, "is not finite"},
      {{"trainer.critic.update=3"}, 2, "did you mean 'updates'"},
      {{"trainer.student={timesteps: [1000, 1100]}"}, 2, "rung 1 is 1100, outside the schedule's"},
      {{"trainer.teacher=/nonexistent"}, 3, "/nonexistent"},
      {{"trainer.gan={features: /nonexistent, real_share: 1}"}, 2, "gan.features: /nonexistent: no such folder"},
  };
  int n = 0;
  for (const Case& c : cases) {
    const Finished f = train("dmd2.yaml", "bad-" + std::to_string(n++), c.more);
    EXPECT_EQ(f.code, c.code) << c.says << "\n" << f.output;
    EXPECT_THAT(f.output, HasSubstr(c.says));
  }
}

}  // namespace
}  // namespace fewstep
