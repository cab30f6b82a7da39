// Phased consistency as a user runs it: ranks, micro-batches, resume after a kill, what the folder samples, errors. Tiny networks on
// Fashion-MNIST, seconds each.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "src/base/json.h"
#include "tests/trainers/diffusion_runs.h"

namespace fewstep {
namespace {
namespace fs = std::filesystem;
using ::testing::HasSubstr;
using testing::Child;
using testing::DiffusionRuns;
using testing::Finished;

constexpr const char* kPcmRun = R"(
name: pcm
seed: 5
threads: 1
data: {kind: fashion_mnist, image_size: 32}
loop: {steps: 6, batch_size: 8, log_every: 1, validation_samples: 16, workers: 1}
trainer:
  kind: pcm
  teacher: ROOT/teacher
  student: {timesteps: [1000, 700]}
  consistency: {solver_steps: 8, cfg_min: 1.2, cfg_max: 2}
  optimizer: {lr: 2.0e-3, ema_decay: 0.9}
  validation_trajectories: 0.2
  pictures: {columns: 4, teacher_steps: 4}
)";
// All that can be on.
const std::vector<std::string> kLora = {"trainer.lora.rank=2", "trainer.recompute=true", "trainer.adversarial.weight=0.1",
                                        "trainer.adversarial.heads.norm_groups=4"};

class PcmRuns : public DiffusionRuns {
 protected:
  static void SetUpTestSuite() {
    DiffusionRuns::SetUpTestSuite();
    write_config("pcm.yaml", kPcmRun);
    run("text.yaml", "teacher", {"loop.steps=20"});
  }
};

TEST_F(PcmRuns, TheFolderSamplesAtTheStudentsLevels) {
  run("pcm.yaml", "plain");
  EXPECT_EQ(losses("plain", "loss").size(), 6u);
  for (const char* name : {"loss", "loss[t<=700]", "loss[t<=1000]"}) EXPECT_EQ(losses("plain", name, "validation").size(), 1u) << name;
  EXPECT_TRUE(fs::exists(root() / "plain" / "samples" / "step-000000006.png"));
  const Json facts = read_json(model("plain", 6) / "distillation.json");
  EXPECT_EQ(facts.at("method"), "pcm");
  EXPECT_EQ(facts.at("training").at("iterations"), 6);
  EXPECT_NEAR(facts.at("sigmas").at(1).get<double>(), 0.7, 1e-12);
  const Finished f = Child({FEWSTEP_BINARY, "sample", (root() / "plain").string(), "--prompt", "a dress", "--num", "2", "--out",
                            (root() / "drawn").string(), "sampling_steps=2"}, root()).wait();
  ASSERT_EQ(f.code, 0) << f.output;
  EXPECT_TRUE(fs::exists(root() / "drawn" / "grid.png"));
}

TEST_F(PcmRuns, RanksAndAccumulationEqualOne) {
  for (const bool lora : {false, true}) {
    std::vector<std::string> shared = {"trainer.precision=float64", "loop.steps=20"};
    if (lora) shared.insert(shared.end(), kLora.begin(), kLora.end());
    const std::string name = lora ? "lora" : "full";
    const auto with = [&](std::vector<std::string> more) {
      more.insert(more.begin(), shared.begin(), shared.end());
      return more;
    };
    run("pcm.yaml", name + "-one", shared);
    run("pcm.yaml", name + "-ranks", with({"--nproc", "2"}));
    run("pcm.yaml", name + "-accumulated", with({"loop.accumulate=4"}));
    for (const char* other : {"-ranks", "-accumulated"}) {
      const double d = relative_difference(weights(name + "-one", 20), weights(name + other, 20));
      std::printf("pcm %s: 1 rank x 8 against %s, 20 steps, float64: |dw| / |w| = %.2e\n", name.c_str(), other, d);
      EXPECT_LE(d, 1e-10);
    }
  }
  run("pcm.yaml", "one-other-seed", {"trainer.precision=float64", "loop.steps=20", "seed=6"});
  EXPECT_GT(relative_difference(weights("full-one", 20), weights("one-other-seed", 20)), 1e-4);
}

TEST_F(PcmRuns, AKilledRunGoesOnBitForBit) {
  kill_and_compare("pcm.yaml", "kill-full", {});
  kill_and_compare("pcm.yaml", "kill-lora", kLora);
}

TEST_F(PcmRuns, AStudentIsTheStartOfTheNext) {
  run("pcm.yaml", "first", kLora);
  const std::string start = "trainer.start=" + (root() / "first").string();
  std::vector<std::string> more = kLora;
  more.insert(more.end(), {start, "loop.checkpoint_every=3"});
  run("pcm.yaml", "second-lora", more);
  run("pcm.yaml", "second-full", {start});
  // A resumed run has its start behind it.
  fs::remove_all(checkpoint("second-lora", 6));
  fs::rename(root() / "first", root() / "first-gone");
  more.emplace_back("--resume");
  const Finished resumed = train("pcm.yaml", "second-lora", more);
  EXPECT_EQ(resumed.code, 0) << resumed.output;
}

TEST_F(PcmRuns, BadInputIsAnswered) {
  run("class.yaml", "epsilon", {"loop.steps=1"});
  struct Case {
    std::vector<std::string> more;
    int code;
    std::string says;
  };
  const Case cases[] = {
      {{"trainer.consistency.solver_steps=9"}, 2, "no multiple of the student's 2 steps"},
      {{"trainer.student.timesteps=[1200, 700]"}, 2, "outside the schedule's [0, 1000]"},
      {{"trainer.student.student=stochastic"}, 2, "must be ode"},
      {{"trainer.lora.rank=2", "trainer.lora.targets=[to_nothing]"}, 2, "to_nothing"},
      {{"trainer.start=" + (root() / "epsilon").string()}, 2, "predicts 'epsilon'"},
      {{"trainer.teacher=/nonexistent"}, 3, "/nonexistent"},
      {{"loop.steps=2", "stages=[{name: a, steps: 2, set: {trainer.student.timesteps: [1000]}}]"}, 2, "what makes the network cannot change"},
  };
  int n = 0;
  for (const Case& c : cases) {
    const Finished f = train("pcm.yaml", "bad-" + std::to_string(n++), c.more);
    EXPECT_EQ(f.code, c.code) << c.says << "\n" << f.output;
    EXPECT_THAT(f.output, HasSubstr(c.says));
  }
}

}  // namespace
}  // namespace fewstep
