// Training autoencoders as a user does: resume, ranks, micro-batches, what is saved, faults. Seconds each.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "datasets/fashion_mnist.h"
#include "datasets/loader.h"
#include "src/base/files.h"
#include "src/io/checkpoint.h"
#include "src/models/autoencoder_kl.h"
#include "src/models/model.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "tests/trainers/training_runs.h"

namespace fewstep {
namespace {
namespace fs = std::filesystem;
using ::testing::HasSubstr;
using testing::Finished;

constexpr const char* kVae = R"(
name: vae
seed: 3
threads: 1
data: {kind: fashion_mnist, image_size: 28}
loop: {steps: 6, batch_size: 8, log_every: 1, validation_samples: 16, workers: 1}
trainer:
  kind: autoencoder
  model: {block_out_channels: [8, 16], layers_per_block: 1, latent_channels: 3, norm_num_groups: 4}
  optimizer: {lr: 2.0e-3, clip_norm: 0.0, ema_decay: 0.9}
  learn_logvar: true
  kl_weight: 1.0e-3
  perceptual: {encoder: SOURCE/tests/golden/vgg16, weight: 0.5}
  adversarial: {weight: 0.5, start: 0.4, discriminator: {channels: 8, layers: 2, norm_groups: 4}, optimizer: {lr: 1.0e-3, clip_norm: 0.0}}
  range: {every: 2}
  latent_samples: 64
)";

class AutoencoderRuns : public testing::RunFolders {
 protected:
  static void SetUpTestSuite() {
    RunFolders::SetUpTestSuite();
    std::string text = kVae;
    text.replace(text.find("SOURCE"), 6, FEWSTEP_SOURCE_DIR);
    write_config("vae.yaml", text);
  }
};

TEST_F(AutoencoderRuns, ResumeEqualsUninterruptedBitForBitWithTheDiscriminator) {
  ASSERT_EQ(train("vae.yaml", "whole").code, 0);
  ASSERT_EQ(train("vae.yaml", "part", {"loop.checkpoint_every=4"}).code, 0);
  fs::remove_all(io::checkpoint_path(root() / "part", 6));  // as if the run had died after step 4
  const Finished resumed = train("vae.yaml", "part", {"loop.checkpoint_every=4", "--resume"});
  ASSERT_EQ(resumed.code, 0) << resumed.output;
  EXPECT_THAT(resumed.output, HasSubstr("step 4 of 6"));
  expect_same_files("whole", "part", 6);
  const TensorMap w = weights("whole", 6);
  EXPECT_TRUE(w.contains("vae.logvar"));
  EXPECT_TRUE(w.contains("critic.head.weight"));
}

TEST_F(AutoencoderRuns, TwoRanksEqualOneAndMicroBatchesEqualTheBatch) {
  const std::vector<std::string> shared = {"trainer.precision=float64", "loop.steps=10"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), shared.begin(), shared.end());
    return more;
  };
  ASSERT_EQ(train("vae.yaml", "one", shared).code, 0);
  const Finished two = train("vae.yaml", "two", with({"--nproc", "2"}));
  ASSERT_EQ(two.code, 0) << two.output;
  ASSERT_EQ(train("vae.yaml", "micro", with({"loop.accumulate=4"})).code, 0);
  std::printf("10 steps, float64, |dw| / |w|: 2 ranks %.2e, 4 micro-batches %.2e\n", distance("one", "two", 10), distance("one", "micro", 10));
  EXPECT_LE(distance("one", "two", 10), 1e-12);
  EXPECT_LE(distance("one", "micro", 10), 1e-12);
  EXPECT_EQ(losses("one", "adversarial_weight").size(), 6u);  // from step 4 of 10
  for (size_t i = 0; i < 6; ++i)
    for (const char* other : {"two", "micro"})
      EXPECT_NEAR(losses("one", "adversarial_weight")[i] / losses(other, "adversarial_weight")[i], 1, 1e-9);
  EXPECT_EQ(losses("one", "activation_max").size(), 5u);  // every second step
  EXPECT_NEAR(losses("one", "activation_max").back(), losses("two", "activation_max").back(), 1e-9);
  // The control: another seed is far away, so the comparison can fail.
  ASSERT_EQ(train("vae.yaml", "other", with({"seed=4"})).code, 0);
  EXPECT_GT(distance("one", "other", 10), 1e-2);
}

TEST_F(AutoencoderRuns, RecomputeEqualsPlain) {
  ASSERT_EQ(train("vae.yaml", "plain").code, 0);
  ASSERT_EQ(train("vae.yaml", "recompute", {"trainer.recompute=true"}).code, 0);
  EXPECT_EQ(distance("plain", "recompute", 6), 0);
}

TEST_F(AutoencoderRuns, ReconstructionImprovesAndTheFolderIsDiffusers) {
  ASSERT_EQ(train("vae.yaml", "falls", {"loop.steps=60", "loop.validate_every=10", "trainer.adversarial.start=0.8"}).code, 0);
  const auto psnr = losses("falls", "psnr", "validation");
  EXPECT_GT(psnr.back(), psnr.front() + 2);
  const fs::path model = io::checkpoint_path(root() / "falls", 60) / "model";
  EXPECT_TRUE(fs::exists(model / "vae" / "diffusion_pytorch_model.safetensors"));
  EXPECT_EQ(read_json(model / "model_index.json").at("_class_name"), "AutoencoderKL");
  const Json config = read_json(model / "vae" / "config.json");
  EXPECT_EQ(config.at("_class_name"), "AutoencoderKL");
  EXPECT_EQ(config.at("in_channels"), 1);
  // What is saved scales latents of real images to deviation 1.
  const auto loaded = models::load_model(model / "vae");
  const auto& vae = dynamic_cast<const models::AutoencoderKL&>(*loaded);
  const NoGrad no_grad;
  FashionMnistConfig data;
  data.image_size = 28;
  const models::Posterior q = vae.encode(load_range(*data.build(Split::train), 0, 64, 3).images);
  at::manual_seed(1);
  EXPECT_NEAR(vae.scale(q.sample(at::randn(q.mean.sizes()))).std().item<double>(), 1, 0.02);
  EXPECT_GT(losses("falls", "kl", "validation").back(), 0);
  EXPECT_GT(losses("falls", "activation_max").back(), 0);
  EXPECT_EQ(losses("falls", "activations_above_limit").back(), 0);
}

// The posterior's mode of test images against the images themselves, by the EMA weights of the checkpoint.
TEST_F(AutoencoderRuns, EvaluationReconstructs) {
  ASSERT_EQ(train("vae.yaml", "judged", {"loop.steps=20"}).code, 0);
  write_config("eval.yaml", R"(
name: eval
out: ROOT/eval
seed: 5
threads: 1
data: {kind: fashion_mnist, image_size: 28}
tokenizer: ROOT/judged
num_samples: 40
reference_samples: 10
sets: [real, reconstructions]
metrics: [psnr, ssim]
report: true
)");
  const Finished f = testing::Child({FEWSTEP_BINARY, "eval", (root() / "eval.yaml").string()}, root()).wait();
  ASSERT_EQ(f.code, 0) << f.output;
  const Json rows = read_json(root() / "eval" / "results.json").at("rows");
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_FALSE(rows[0].at("metrics").contains("PSNR"));  // real images have no originals
  const Json& metrics = rows[1].at("metrics");
  EXPECT_EQ(metrics.at("PSNR").at("n"), 40);
  EXPECT_NEAR(metrics.at("PSNR").at("value").get<double>(), losses("judged", "psnr", "validation").back(), 1.5);
  EXPECT_GT(metrics.at("SSIM").at("value").get<double>(), 0);
  const Finished tokens = testing::Child({FEWSTEP_BINARY, "eval", (root() / "eval.yaml").string(), "sets=[independent_tokens]"}, root()).wait();
  EXPECT_EQ(tokens.code, 2) << tokens.output;
  EXPECT_THAT(tokens.output, HasSubstr("has no tokens"));
}

TEST_F(AutoencoderRuns, ThePenaltyLowersTheLargestActivation) {
  const std::vector<std::string> shared = {"loop.steps=60", "trainer.adversarial.weight=0", "trainer.range.limit=2", "trainer.range.every=1"};
  auto with = shared;
  with.push_back("trainer.range.penalty=1");
  ASSERT_EQ(train("vae.yaml", "free", shared).code, 0);
  ASSERT_EQ(train("vae.yaml", "held", with).code, 0);
  const double before = losses("free", "activation_max").back(), after = losses("held", "activation_max").back();
  std::printf("largest activation after 60 steps: %.2f, with a penalty %.2f\n", before, after);
  EXPECT_LT(after, 0.7 * before);
  EXPECT_LT(losses("held", "activations_above_limit").back(), losses("free", "activations_above_limit").back());
}

TEST_F(AutoencoderRuns, GoesOnFromAFolder) {
  ASSERT_EQ(train("vae.yaml", "first").code, 0);
  const std::string init = "trainer.init=" + (root() / "first").string();
  const Finished same = train("vae.yaml", "second", {init, "trainer.optimizer.lr=1.0e-12"});
  ASSERT_EQ(same.code, 0) << same.output;
  EXPECT_NEAR(losses("second", "psnr", "validation").back(), losses("first", "psnr", "validation").back(), 1e-4);
  const Finished other = train("vae.yaml", "third", {init, "trainer.model.latent_channels=4"});
  EXPECT_NE(other.code, 0);
  EXPECT_THAT(other.output, HasSubstr("encoder.conv_out.weight"));
}

TEST_F(AutoencoderRuns, BadInputIsAnswered) {
  struct Case {
    std::vector<std::string> more;
    std::string says;
  };
  const Case cases[] = {
      {{"trainer.recompute=true", "trainer.range.penalty=1"}, "range.penalty needs the activations"},
      {{"trainer.model.block_out_channels=[8,8,8,8,8,8]"}, "not a multiple of its factor 32"},
      {{"trainer.model.norm_num_groups=3"}, "multiple of norm_num_groups"},
      {{"trainer.kl_wieght=1"}, "did you mean 'kl_weight'"},
  };
  int n = 0;
  for (const Case& c : cases) {
    const Finished f = train("vae.yaml", "bad-" + std::to_string(n++), c.more);
    EXPECT_EQ(f.code, 2) << f.output;
    EXPECT_THAT(f.output, HasSubstr(c.says));
  }
}

}  // namespace
}  // namespace fewstep
