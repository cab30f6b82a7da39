// Training as a user runs it: resume, ranks, faults. Tiny models on Fashion-MNIST, seconds each.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "src/base/files.h"
#include "src/io/checkpoint.h"
#include "src/io/safetensors.h"
#include "src/tensor/ops.h"
#include "tests/trainers/training_runs.h"

namespace fewstep {
namespace {
namespace fs = std::filesystem;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using testing::Child;
using testing::Finished;

using Training = testing::TrainingRuns;

TEST_F(Training, ResumeEqualsUninterruptedBitForBit) {
  for (const std::string kind : {"vq", "ar"}) {
    const std::string config = kind + ".yaml";
    ASSERT_EQ(train(config, kind + "-whole").code, 0);
    ASSERT_EQ(train(config, kind + "-part", {"loop.steps=6", "loop.checkpoint_every=3"}).code, 0);
    // As if the run had died after step 3.
    fs::remove_all(io::checkpoint_path(root() / (kind + "-part"), 6));
    const Finished resumed = train(config, kind + "-part", {"loop.checkpoint_every=3", "--resume"});
    ASSERT_EQ(resumed.code, 0) << resumed.output;
    EXPECT_THAT(resumed.output, HasSubstr("step 3 of 6"));
    expect_same_files(kind + "-whole", kind + "-part", 6);
  }
}

TEST_F(Training, LossFallsAndCheckpointIsComplete) {
  ASSERT_EQ(train("ar.yaml", "ar-falls", {"loop.steps=30"}).code, 0);
  const auto l = losses("ar-falls", "loss");
  ASSERT_EQ(l.size(), 30u);
  EXPECT_LT(l.back(), l.front() - 0.2);
  const fs::path model = io::checkpoint_path(root() / "ar-falls", 30) / "model";
  for (const char* file : {"model_index.json", "transformer/config.json", "transformer/model.safetensors", "vq/config.json",
                           "tokenizer/vocab.json", "tokenizer/merges.txt"})
    EXPECT_TRUE(fs::exists(model / file)) << file;
  EXPECT_TRUE(fs::exists(root() / "ar-falls" / "config.yaml"));
  EXPECT_THAT(read_text(root() / "ar-falls" / "report.html"), HasSubstr("data:image/png;base64,"));
}

TEST_F(Training, TheResolvedConfigRunsAgain) {
  ASSERT_EQ(train("ar.yaml", "ar-resolved-a").code, 0);
  fs::copy_file(root() / "ar-resolved-a" / "config.yaml", root() / "resolved.yaml");
  ASSERT_EQ(train("resolved.yaml", "ar-resolved-b").code, 0);
  expect_same_files("ar-resolved-a", "ar-resolved-b", 6);
}

TEST_F(Training, TwoRanksEqualOne) {
  for (const auto& [precision, limit] : std::vector<std::pair<std::string, double>>{{"float64", 1e-10}, {"float32", 1e-5}}) {
    const std::vector<std::string> shared = {"trainer.precision=" + precision, "loop.steps=20"};
    auto two = shared;
    two.insert(two.end(), {"--nproc", "2"});
    ASSERT_EQ(train("ar.yaml", "ar-one-" + precision, shared).code, 0);
    const Finished finished = train("ar.yaml", "ar-two-" + precision, two);
    ASSERT_EQ(finished.code, 0) << finished.output;
    const double d = relative_difference(weights("ar-one-" + precision, 20), weights("ar-two-" + precision, 20));
    std::printf("1 rank x 8 against 2 ranks x 4, 20 steps, %s: |dw| / |w| = %.2e\n", precision.c_str(), d);
    EXPECT_LE(d, limit);
  }
  // The control: another seed is far away, so the comparison can fail.
  ASSERT_EQ(train("ar.yaml", "ar-other", {"loop.steps=20", "seed=6"}).code, 0);
  EXPECT_GT(relative_difference(weights("ar-one-float32", 20), weights("ar-other", 20)), 1e-2);
}

TEST_F(Training, AccumulationEqualsOneBatch) {
  ASSERT_EQ(train("ar.yaml", "ar-acc-1", {"trainer.precision=float64"}).code, 0);
  ASSERT_EQ(train("ar.yaml", "ar-acc-4", {"trainer.precision=float64", "loop.accumulate=4"}).code, 0);
  EXPECT_LE(relative_difference(weights("ar-acc-1", 6), weights("ar-acc-4", 6)), 1e-12);
}

TEST_F(Training, RecomputeEqualsPlain) {
  ASSERT_EQ(train("ar.yaml", "ar-plain").code, 0);
  ASSERT_EQ(train("ar.yaml", "ar-recompute", {"trainer.recompute=true"}).code, 0);
  EXPECT_EQ(relative_difference(weights("ar-plain", 6), weights("ar-recompute", 6)), 0);
}

TEST_F(Training, TheCodebookDoesNotDependOnRanks) {
  ASSERT_EQ(train("vq.yaml", "vq-one").code, 0);
  ASSERT_EQ(train("vq.yaml", "vq-two", {"--nproc", "2"}).code, 0);
  EXPECT_LE(relative_difference(weights("vq-one", 6, "codebook"), weights("vq-two", 6, "codebook")), 1e-3);
}

TEST_F(Training, NonFiniteStopsWithStepAndSampleIds) {
  const Finished f = train("ar.yaml", "ar-nan", {"trainer.optimizer.lr=1.0e+30", "trainer.optimizer.clip_norm=0"});
  EXPECT_EQ(f.code, 4) << f.output;
  EXPECT_THAT(f.output, ContainsRegex("step [0-9]+: the gradient of 'transformer' is not finite"));
  EXPECT_THAT(f.output, ContainsRegex("sample ids of this rank: \\[[0-9]+, "));
  EXPECT_FALSE(fs::exists(root() / "ar-nan" / "checkpoints" / "latest"));
  EXPECT_THAT(f.output, HasSubstr("failed-step-"));
}

TEST_F(Training, AChangedModelIsRefusedOnResumeWithTheKeys) {
  ASSERT_EQ(train("ar.yaml", "ar-changed").code, 0);
  const Finished f = train("ar.yaml", "ar-changed", {"--resume", "trainer.model.hidden_size=48", "trainer.optimizer.lr=1.0e-4"});
  EXPECT_EQ(f.code, 2);
  EXPECT_THAT(f.output, HasSubstr("trainer.model.hidden_size: 32 -> 48"));
  EXPECT_THAT(f.output, HasSubstr("trainer.optimizer.lr: 0.002 -> 0.0001"));
}

TEST_F(Training, AnExistingRunIsNotOverwritten) {
  ASSERT_EQ(train("ar.yaml", "ar-again").code, 0);
  const Finished f = train("ar.yaml", "ar-again");
  EXPECT_EQ(f.code, 2);
  EXPECT_THAT(f.output, HasSubstr("--resume"));
}

TEST_F(Training, SigtermSavesAndExits130) {
  Child child(arguments("ar.yaml", "ar-stopped", {"loop.steps=100000"}), root());
  ASSERT_TRUE(child.wait_until([] { return fs::exists(root() / "ar-stopped" / "metrics.jsonl"); })) << child.output();
  child.signal(SIGTERM);
  const Finished f = child.wait();
  EXPECT_EQ(f.code, 130) << f.output;
  EXPECT_THAT(f.output, HasSubstr("--resume"));
  EXPECT_TRUE(io::find_checkpoint(root() / "ar-stopped").has_value());
}

TEST_F(Training, ARunFolderInUseNamesTheProcess) {
  Child child(arguments("ar.yaml", "ar-busy", {"loop.steps=100000"}), root());
  ASSERT_TRUE(child.wait_until([] { return fs::exists(root() / "ar-busy" / "metrics.jsonl"); })) << child.output();
  const Finished second = train("ar.yaml", "ar-busy", {"--resume"});
  child.signal(SIGTERM);
  child.wait();
  EXPECT_EQ(second.code, 3) << second.output;
  EXPECT_THAT(second.output, ContainsRegex("process [0-9]+"));
}

TEST_F(Training, ADeadRankFailsTheOthersWithinSeconds) {
  const Finished f = train("ar.yaml", "ar-dead", {"--nproc", "2", "trainer.optimizer.lr=1.0e+30", "trainer.optimizer.clip_norm=0"});
  EXPECT_EQ(f.code, 4) << f.output;
}

TEST_F(Training, BadInputIsAnswered) {
  struct Case {
    std::vector<std::string> more;
    int code;
    std::string says;
  };
  const Case cases[] = {
      {{"loop.batch_size=7", "--nproc", "2"}, 2, "loop.batch_size 7 is not divisible by 2 ranks"},
      {{"--device", "cuda"}, 2, "CUDA"},
      {{"data.folder=/nonexistent"}, 3, "dataset-fashion-mnist"},
      {{"trainer.tokenizer=/nonexistent"}, 3, "/nonexistent"},
      {{"trainer.model.hiden_size=3"}, 2, "did you mean 'hidden_size'"},
      {{"device=tpu"}, 2, "'tpu' is not one of auto, cpu, cuda"},
      {{"trainer.model.num_attention_heads=5"}, 2, "must be a multiple of num_attention_heads"},
  };
  int n = 0;
  for (const Case& c : cases) {
    const Finished f = train("ar.yaml", "ar-bad-" + std::to_string(n++), c.more);
    EXPECT_EQ(f.code, c.code) << c.says << "\n" << f.output;
    EXPECT_THAT(f.output, HasSubstr(c.says));
  }
}

TEST_F(Training, AnUnwritableRunFolderIsNamed) {
  const Finished f = Child({FEWSTEP_BINARY, "train", (root() / "vq.yaml").string(), "--run-dir", "/proc/fewstep"}, root()).wait();
  EXPECT_EQ(f.code, 3) << f.output;
  EXPECT_THAT(f.output, HasSubstr("/proc/fewstep"));
}

TEST_F(Training, SamplesDoNotDependOnTheBatch) {
  ASSERT_EQ(train("ar.yaml", "ar-samples").code, 0);
  const auto tokens = [&](const std::string& out, const std::string& batch) {
    const Finished f = Child({FEWSTEP_BINARY, "sample", (root() / "ar-samples").string(), "batch_size=" + batch, "guidance=1.5",
                              "--prompt", "a dress", "--num", "5", "--seed", "9", "--out", (root() / out).string(),
                              "--save-tokens", (root() / (out + ".safetensors")).string()}, root()).wait();
    EXPECT_EQ(f.code, 0) << f.output;
    return io::Safetensors(root() / (out + ".safetensors")).get("tokens").clone();
  };
  const Tensor five = tokens("five", "5"), one = tokens("one", "1");
  EXPECT_EQ(five.size(0), 5);
  EXPECT_EQ(five.size(1), 64);
  EXPECT_TRUE(five.equal(one));
  EXPECT_FALSE(five[0].equal(five[1]));
  EXPECT_TRUE(fs::exists(root() / "five" / "grid.png"));
}

}  // namespace
}  // namespace fewstep
