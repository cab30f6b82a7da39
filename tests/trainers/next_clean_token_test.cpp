// The trainer next_clean_token as a user runs it: tiny models on Fashion-MNIST, seconds each.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <numeric>

#include "src/base/files.h"
#include "src/base/json.h"
#include "src/io/checkpoint.h"
#include "src/io/safetensors.h"
#include "src/tensor/ops.h"
#include "tests/trainers/training_runs.h"

namespace fewstep {
namespace {
namespace fs = std::filesystem;
using ::testing::HasSubstr;
using testing::Child;
using testing::Finished;

// Seed and data as in ar.yaml, so that both trainers see the same batches.
constexpr const char* kNct = R"(
name: nct
seed: 5
threads: 1
data: {kind: fashion_mnist}
loop: {steps: 6, batch_size: 8, log_every: 1, validation_samples: 16, workers: 1}
trainer:
  kind: next_clean_token
  model: ROOT/ar
  window: 16
  optimizer: {lr: 2.0e-3}
)";
constexpr const char* kTinyStep = "trainer.optimizer.lr=1.0e-30";  // below the rounding of every weight: nothing moves

class NextCleanToken : public testing::TrainingRuns {
 protected:
  static void SetUpTestSuite() {
    TrainingRuns::SetUpTestSuite();
    write_config("nct.yaml", kNct);
    const Finished ar = train("ar.yaml", "ar", {"loop.steps=40", "trainer.optimizer.ema_decay=0"});
    ASSERT_EQ(ar.code, 0) << ar.output;
  }
  static fs::path model_of(const std::string& run, int64_t step) { return io::checkpoint_path(root() / run, step) / "model"; }
  static TensorMap transformer(const fs::path& model) {
    return io::Safetensors(model / "transformer" / "model.safetensors").all();
  }
  static void run(const std::string& name, const std::vector<std::string>& more = {}) {
    const Finished f = train("nct.yaml", name, more);
    ASSERT_EQ(f.code, 0) << f.output;
  }
};

TEST_F(NextCleanToken, ResumeEqualsUninterruptedBitForBit) {
  for (const auto& [kind, more] : std::map<std::string, std::vector<std::string>>{
           {"full", {"trainer.optimizer.ema_decay=0.9"}}, {"lora", {"trainer.lora.rank=4", "trainer.optimizer.ema_decay=0.9"}}}) {
    auto part = more, again = more;
    part.push_back("loop.checkpoint_every=3"), again.insert(again.end(), {"loop.checkpoint_every=3", "--resume"});
    run(kind + "-whole", more);
    run(kind + "-part", part);
    fs::remove_all(io::checkpoint_path(root() / (kind + "-part"), 6));  // as if it had died after step 3
    const Finished resumed = train("nct.yaml", kind + "-part", again);
    ASSERT_EQ(resumed.code, 0) << resumed.output;
    EXPECT_THAT(resumed.output, HasSubstr("step 3 of 6"));
    expect_same_files(kind + "-whole", kind + "-part", 6);
    EXPECT_EQ(relative_difference(transformer(model_of(kind + "-whole", 6)), transformer(model_of(kind + "-part", 6))), 0);
  }
}

TEST_F(NextCleanToken, WithoutNoiseItIsTheTrainerAutoregressive) {
  const std::string no_ema = "trainer.optimizer.ema_decay=0";
  ASSERT_EQ(train("ar.yaml", "ar-initial", {"loop.steps=1", kTinyStep, no_ema}).code, 0);  // the initial weights as a run
  ASSERT_EQ(train("ar.yaml", "ar-six", {no_ema}).code, 0);
  run("clean", {"trainer.model=" + (root() / "ar-initial").string(), "trainer.noisy=false", "trainer.freeze_embeddings=false"});
  const auto ar = losses("ar-six", "loss");
  ASSERT_EQ(ar.size(), 6u);
  EXPECT_EQ(losses("clean", "loss"), ar);
  EXPECT_EQ(losses("clean", "loss", "validation"), losses("ar-six", "loss", "validation"));
  EXPECT_EQ(relative_difference(weights("ar-six", 6), weights("clean", 6)), 0);
  EXPECT_FALSE(fs::exists(model_of("clean", 6) / "next_clean_token"));
  run("noisy", {"trainer.model=" + (root() / "ar-initial").string(), "trainer.freeze_embeddings=false"});
  EXPECT_NE(losses("noisy", "loss"), ar);
}

TEST_F(NextCleanToken, TwoRanksEqualOne) {
  for (const std::string layout : {"segments", "two_stream"}) {
    const std::vector<std::string> one = {"trainer.precision=float64", "loop.steps=10", "trainer.layout=" + layout};
    auto two = one;
    two.insert(two.end(), {"--nproc", "2"});
    run("one-" + layout, one);
    run("two-" + layout, two);
    const double d = relative_difference(weights("one-" + layout, 10), weights("two-" + layout, 10));
    std::printf("%s, 1 rank x 8 against 2 ranks x 4, 10 steps, float64: |dw| / |w| = %.2e\n", layout.c_str(), d);
    std::fflush(stdout);  // before the next fork takes a copy of the buffer
    EXPECT_LE(d, 1e-10);
    for (const char* name : {"loss", "loss_clean", "loss_t1", "loss_t4"}) {
      const auto a = losses("one-" + layout, name), b = losses("two-" + layout, name);
      ASSERT_EQ(a.size(), b.size());
      for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 1e-8) << name;
    }
  }
  EXPECT_GT(relative_difference(weights("one-segments", 10), weights("one-two_stream", 10)), 1e-3) << "the control";
}

TEST_F(NextCleanToken, AccumulationAndRecomputeChangeNothing) {
  const std::vector<std::string> shared = {"trainer.precision=float64", "trainer.layout=window", "trainer.levels_count=4",
                                           "trainer.noise.timestep_tokens=per_slot", "trainer.lora.rank=4"};
  auto split = shared, again = shared;
  split.push_back("loop.accumulate=4"), again.push_back("trainer.recompute=true");
  run("whole-batch", shared);
  run("split-batch", split);
  run("recomputed", again);
  EXPECT_LE(relative_difference(weights("whole-batch", 6), weights("split-batch", 6)), 1e-12);
  EXPECT_EQ(relative_difference(weights("whole-batch", 6), weights("recomputed", 6)), 0);
}

TEST_F(NextCleanToken, LossFallsIsLoggedByLevelAndTheFolderSamples) {
  run("falls", {"loop.steps=40"});
  const auto loss = losses("falls", "loss_t4");
  ASSERT_GE(loss.size(), 30u);
  EXPECT_LT(std::accumulate(loss.end() - 5, loss.end(), 0.0), std::accumulate(loss.begin(), loss.begin() + 5, 0.0));
  for (const char* name : {"loss", "loss_clean", "loss_t1", "loss_t2", "loss_t3", "loss_t4", "loss_ar"})
    EXPECT_EQ(losses("falls", name, "validation").size(), 1u) << name;
  const fs::path model = model_of("falls", 40);
  EXPECT_EQ(read_json(model / "model_index.json")["next_clean_token"], (Json{"fewstep", "EmbeddingNoise"}));
  EXPECT_TRUE(fs::exists(model / "next_clean_token" / "config.json"));
  // The table is frozen, the rest is not.
  const TensorMap before = transformer(model_of("ar", 40)), after = transformer(model);
  EXPECT_TRUE(after.at("model.embed_tokens.weight").equal(before.at("model.embed_tokens.weight")));
  EXPECT_FALSE(after.at("lm_head.weight").equal(before.at("lm_head.weight")));
  const fs::path tokens = root() / "tokens.safetensors";
  const Finished f = Child({FEWSTEP_BINARY, "sample", (root() / "falls").string(), "--prompt", "a dress", "--num", "3", "--out",
                            (root() / "samples").string(), "--save-tokens", tokens.string()}, root()).wait();
  ASSERT_EQ(f.code, 0) << f.output;
  EXPECT_EQ(io::Safetensors(tokens).get("tokens").sizes(), (std::vector<int64_t>{3, 64}));
}

TEST_F(NextCleanToken, AdaptersAreSavedMergedAndApart) {
  run("adapters", {"trainer.lora.rank=4", "trainer.lora.alpha=8", "trainer.lora.targets=[q_proj, down_proj]"});
  const fs::path model = model_of("adapters", 6);
  const TensorMap before = transformer(model_of("ar", 40)), merged = transformer(model);
  const TensorMap adapter = io::Safetensors(model / "transformer_lora" / "adapter_model.safetensors").all();
  EXPECT_EQ(adapter.size(), 2u * 2 * 2) << "two layers, two targets, A and B";
  for (const auto& [name, weight] : before) {
    const std::string layer = "base_model.model." + name.substr(0, name.size() - std::string(".weight").size());
    Tensor expected = weight;
    if (const auto a = adapter.find(layer + ".lora_A.weight"); a != adapter.end())
      expected = weight + 2.0 * at::mm(adapter.at(layer + ".lora_B.weight"), a->second);
    EXPECT_LT((merged.at(name) - expected).abs().max().item<double>(), 1e-6) << name;
    EXPECT_EQ(merged.at(name).equal(weight), expected.equal(weight)) << name;
  }
  const Json config = read_json(model / "transformer_lora" / "adapter_config.json");
  EXPECT_EQ(config["r"], 4);
  EXPECT_EQ(config["lora_alpha"], 8.0);
  EXPECT_EQ(config["target_modules"], (Json{"q_proj", "down_proj"}));
}

TEST_F(NextCleanToken, AnisotropyKeepsTheCleanFunctionOnly) {
  const std::vector<std::string> still = {"loop.steps=1", kTinyStep};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.end(), still.begin(), still.end());
    return more;
  };
  const std::vector<std::string> stretched = {"trainer.anisotropy.spread=10", "trainer.anisotropy.shift=3"};
  auto raw = stretched;
  raw.push_back("trainer.noise.normalise=none");
  run("plain", still);
  run("stretched", with(stretched));
  run("stretched-raw", with(raw));
  const auto value = [](const std::string& name, const char* key) { return losses(name, key, "validation").at(0); };
  EXPECT_NEAR(value("stretched", "loss_ar"), value("plain", "loss_ar"), 1e-4);
  EXPECT_NEAR(value("stretched-raw", "loss_ar"), value("plain", "loss_ar"), 1e-4);
  EXPECT_NEAR(value("stretched", "loss_t2"), value("plain", "loss_t2"), 1e-3) << "normalised noise does not see the stretching";
  EXPECT_GT(std::abs(value("stretched-raw", "loss_t2") - value("plain", "loss_t2")), 1e-2) << "raw noise does";
  EXPECT_EQ(read_json(model_of("stretched", 1) / "transformer" / "config.json")["embed_affine"], true);
  const Finished f = Child({FEWSTEP_BINARY, "sample", (root() / "stretched").string(), "--prompt", "a dress", "--num", "1",
                            "--out", (root() / "stretched-samples").string()}, root()).wait();
  EXPECT_EQ(f.code, 0) << f.output;
}

TEST_F(NextCleanToken, BadInputIsAnswered) {
  struct Case {
    std::vector<std::string> more;
    int code;
    std::string says;
  };
  const Case cases[] = {
      {{"trainer.model=/nonexistent"}, 3, "/nonexistent"},
      {{"trainer.model=" + (root() / "vq").string()}, 2, "is a VQPipeline: a run of the trainer `autoregressive` is needed"},
      {{"trainer.lora.rank=2", "trainer.freeze_embeddings=false"}, 2, "must stay true with lora.rank"},
      {{"trainer.lora.rank=2", "trainer.lora.targets=[to_q]"}, 2, "to_q"},
      {{"trainer.segments=1"}, 2, "segments"},
      {{"data.image_size=64"}, 2, "trainer.model: its grid of 8 x 8 codes is one of 32 x 32 pixels, the data's images are 64 x 64"},
  };
  int number = 0;
  for (const Case& c : cases) {
    const Finished f = train("nct.yaml", "bad-" + std::to_string(number++), c.more);
    EXPECT_EQ(f.code, c.code) << c.says << "\n" << f.output;
    EXPECT_THAT(f.output, HasSubstr(c.says));
  }
  // Tied embeddings cannot be frozen alone.
  ASSERT_EQ(train("ar.yaml", "ar-tied", {"loop.steps=1", "trainer.model.tie_word_embeddings=true"}).code, 0);
  const std::string tied = "trainer.model=" + (root() / "ar-tied").string();
  const Finished refused = train("nct.yaml", "bad-tied", {tied});
  EXPECT_EQ(refused.code, 2) << refused.output;
  EXPECT_THAT(refused.output, HasSubstr("trainer.freeze_embeddings=false"));
  run("tied", {tied, "trainer.freeze_embeddings=false", "loop.steps=1"});
}

TEST_F(NextCleanToken, AnotherStartIsRefusedOnResume) {
  fs::copy(root() / "ar", root() / "ar-moving", fs::copy_options::recursive);
  const std::string start = "trainer.model=" + (root() / "ar-moving").string();
  run("moving", {start});
  fs::remove_all(root() / "ar-moving");
  ASSERT_EQ(train("ar.yaml", "ar-moving", {"loop.steps=3"}).code, 0);
  const Finished f = train("nct.yaml", "moving", {start, "--resume"});
  EXPECT_EQ(f.code, 3) << f.output;
  EXPECT_THAT(f.output, HasSubstr("is not the model this run started from"));
}

}  // namespace
}  // namespace fewstep
