// Training with DINO as a user does: resume, ranks, micro-batches, what is saved, collapse. Seconds each.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "eval/encoder.h"
#include "src/base/json.h"
#include "src/io/checkpoint.h"
#include "src/io/safetensors.h"
#include "src/tensor/ops.h"
#include "tests/trainers/training_runs.h"

namespace fewstep {
namespace {
namespace fs = std::filesystem;
using ::testing::HasSubstr;
using testing::Finished;

constexpr const char* kDino = R"(
name: dino
seed: 3
threads: 1
data: {kind: fashion_mnist}
loop: {steps: 6, batch_size: 8, log_every: 1, validation_samples: 16, workers: 1}
trainer:
  kind: dino
  model: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, mlp_ratio: 2, patch_size: 8}
  head: {hidden: 16, bottleneck: 8, prototypes: 16}
  crops: {locals: 1, local_size: 16}
  optimizer: {lr: 2.0e-3, weight_decay: 0.04}
  momentum: 0.9
  teacher_warmup: 4
  freeze_last_layer: 2
  knn_bank: 64
)";

class DinoRuns : public testing::RunFolders {
 protected:
  static void SetUpTestSuite() {
    RunFolders::SetUpTestSuite();
    write_config("dino.yaml", kDino);
  }
  static Tensor prototypes(const std::string& run, int64_t step) {
    const Tensor w = weights(run, step).at("student.head.last_layer.weight");
    return w / w.norm(2, {1}, true);
  }
};

TEST_F(DinoRuns, ResumeEqualsUninterruptedBitForBit) {
  ASSERT_EQ(train("dino.yaml", "whole").code, 0);
  ASSERT_EQ(train("dino.yaml", "part", {"loop.checkpoint_every=3"}).code, 0);
  fs::remove_all(io::checkpoint_path(root() / "part", 6));  // as if the run had died after step 3
  const Finished resumed = train("dino.yaml", "part", {"loop.checkpoint_every=3", "--resume"});
  ASSERT_EQ(resumed.code, 0) << resumed.output;
  EXPECT_THAT(resumed.output, HasSubstr("step 3 of 6"));
  expect_same_files("whole", "part", 6);
  // The teacher and the centre are part of it, and have moved.
  EXPECT_GT(distance("whole", "part", 6, "teacher") + weights("whole", 6, "dino").at("centre").abs().max().item<double>(), 0);
  EXPECT_GT(relative_difference(weights("part", 3, "teacher"), weights("whole", 6, "teacher")), 1e-5);
  // The prototypes stand still for two steps: as functions, weight decay only scales them.
  ASSERT_EQ(train("dino.yaml", "frozen", {"trainer.freeze_last_layer=6", "loop.checkpoint_every=3"}).code, 0);
  EXPECT_LE((prototypes("frozen", 3) - prototypes("frozen", 6)).abs().max().item<double>(), 1e-6);
  EXPECT_GT((prototypes("part", 3) - prototypes("part", 6)).abs().max().item<double>(), 1e-3);
}

// Without resized position embeddings, which are made in float32: their rounding would be all there is to see.
TEST_F(DinoRuns, TwoRanksEqualOneAndMicroBatchesEqualTheBatch) {
  const std::vector<std::string> shared = {"trainer.precision=float64", "trainer.crops.local_size=32"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), shared.begin(), shared.end());
    return more;
  };
  ASSERT_EQ(train("dino.yaml", "one", shared).code, 0);
  const Finished two = train("dino.yaml", "two", with({"--nproc", "2"}));
  ASSERT_EQ(two.code, 0) << two.output;
  ASSERT_EQ(train("dino.yaml", "micro", with({"loop.accumulate=4"})).code, 0);
  for (const char* stem : {"weights", "teacher", "dino"}) {
    std::printf("6 steps, float64, %s: |d| / |x| 2 ranks %.2e, 4 micro-batches %.2e\n", stem, distance("one", "two", 6, stem),
                distance("one", "micro", 6, stem));
    EXPECT_LE(distance("one", "two", 6, stem), 1e-11);
    EXPECT_LE(distance("one", "micro", 6, stem), 1e-11);
  }
  for (const char* key : {"loss", "teacher_divergence", "teacher_entropy"})
    for (const char* other : {"two", "micro"})
      EXPECT_NEAR(losses("one", key).back(), losses(other, key).back(), 1e-9) << key << " " << other;
  for (const char* key : {"loss", "knn_accuracy", "knn_pixels"})
    EXPECT_NEAR(losses("one", key, "validation").back(), losses("two", key, "validation").back(), 1e-9) << key;
  // The control: another seed is far away, so the comparison can fail.
  ASSERT_EQ(train("dino.yaml", "other", with({"seed=4"})).code, 0);
  EXPECT_GT(distance("one", "other", 6), 1e-2);
}

// A slow teacher and a quick centre: outputs first spread over all prototypes, then part. Without the centre they gather on one.
const std::vector<std::string> kLonger = {
    "loop.steps=150", "loop.batch_size=32", "loop.log_every=15", "trainer.teacher_warmup=0", "trainer.freeze_last_layer=0",
    "trainer.momentum=0.99", "trainer.centre_momentum=0.0", "trainer.teacher_temperature=0.04", "trainer.crops.global_min_area=0.7",
    "trainer.collapse={limit: 0.01, after: 20, patience: 15, action: stop}"};

TEST_F(DinoRuns, LearnsWithCentringAndStopsAtTheCollapseWithout) {
  const Finished run = train("dino.yaml", "learns", kLonger);
  ASSERT_EQ(run.code, 0) << run.output;
  const auto loss = losses("learns", "loss"), divergence = losses("learns", "teacher_divergence");
  ASSERT_EQ(loss.size(), 10u);
  EXPECT_LT(loss.back(), loss.front() - 0.2);
  EXPECT_LT(loss.back(), loss[4] - 0.02);  // and does not stand still at log(prototypes)
  EXPECT_GT(divergence.back(), 1.2 * divergence[2]);
  EXPECT_EQ(losses("learns", "collapsed").back(), 0);
  auto without = kLonger;
  without.emplace_back("trainer.centring=false");
  const Finished collapsed = train("dino.yaml", "collapses", without);
  EXPECT_EQ(collapsed.code, 4) << collapsed.output;
  EXPECT_THAT(collapsed.output, HasSubstr("DINO has collapsed"));
}

TEST_F(DinoRuns, TheSavedFolderIsADinov2Encoder) {
  ASSERT_EQ(train("dino.yaml", "saved").code, 0);
  const fs::path encoder = io::checkpoint_path(root() / "saved", 6) / "model" / "encoder";
  const Json config = read_json(encoder / "config.json");
  EXPECT_EQ(config.at("architectures").at(0), "Dinov2Model");
  EXPECT_EQ(config.at("image_size"), 32);
  const TensorMap saved = io::Safetensors(encoder / "model.safetensors").all(), teacher = weights("saved", 6, "teacher");
  for (const auto& [name, tensor] : saved) EXPECT_TRUE(tensor.equal(teacher.at("backbone." + name))) << name;
  const auto loaded = eval::load_image_encoder(root() / "saved", "dino", at::kCPU);
  const Tensor images = at::randint(0, 256, {2, 1, 32, 32}, at::kByte);
  const Tensor features = loaded->features(images);
  EXPECT_EQ(features.sizes(), (std::vector<int64_t>{2, 16}));
  EXPECT_TRUE(features.isfinite().all().item<bool>());
  EXPECT_GT((features[0] - features[1]).abs().max().item<double>(), 0);
}

TEST_F(DinoRuns, RefusesWhatItCannotDo) {
  const Finished patches = train("dino.yaml", "bad", {"trainer.crops.local_size=12"});
  EXPECT_EQ(patches.code, 2);
  EXPECT_THAT(patches.output, HasSubstr("trainer.crops.local_size: 12 pixels are not a multiple of trainer.model.patch_size 8"));
  EXPECT_THAT(train("dino.yaml", "bad", {"trainer.optimizer.ema_decay=0.9"}).output, HasSubstr("the teacher is the moving average"));
}

}  // namespace
}  // namespace fewstep
