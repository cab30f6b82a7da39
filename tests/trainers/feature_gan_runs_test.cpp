// The last stage of a distillation as a user runs it: features, the teacher's pictures, DMD2 with the discriminator. Tiny networks on
// Fashion-MNIST, seconds each.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "src/tensor/ops.h"
#include "tests/trainers/diffusion_runs.h"
#include "trainers/teacher_images.h"

namespace fewstep {
namespace {
namespace fs = std::filesystem;
using ::testing::HasSubstr;
using testing::Child;
using testing::Finished;

constexpr const char* kDinoFeatures = R"(
name: features
seed: 3
threads: 1
data: {kind: fashion_mnist, image_size: 32}
loop: {steps: 2, batch_size: 8, log_every: 1, validation_samples: 16, workers: 1}
trainer:
  kind: dino
  model: {hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, mlp_ratio: 2, patch_size: 8}
  head: {hidden: 16, bottleneck: 8, prototypes: 16}
  crops: {locals: 1, local_size: 16}
  optimizer: {lr: 2.0e-3}
  momentum: 0.9
  knn_bank: 0
)";

constexpr const char* kDmd2Gan = R"(
name: gan
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
  critic: {updates: 2, optimizer: {lr: 2.0e-3, beta1: 0, schedule: constant}}
  monitor: {diversity_every: 0}
  pictures: {columns: 2, teacher_steps: 2}
  gan:
    features: ROOT/features
    blocks: [0, 2]
    heads: {norm: group, norm_groups: 4, kernel: 3, projection_width: 8}
    crop: {size: 6, halo: 1}
    r1_weight: 2
    real_share: 0.5
    teacher_images: ROOT/teacher.h5
    weight: 0.3
    optimizer: {lr: 2.0e-3, beta1: 0, schedule: constant}
)";

class FeatureGanRuns : public testing::DiffusionRuns {
 protected:
  static void SetUpTestSuite() {
    DiffusionRuns::SetUpTestSuite();
    write_config("features.yaml", kDinoFeatures), write_config("gan.yaml", kDmd2Gan);
    run("text.yaml", "teacher", {"loop.steps=8", "trainer.optimizer.lr=1.0e-2"});
    run("features.yaml", "features");
    const Finished drawn = draw("teacher", {"--count", "20", "--part", "8"});
    ASSERT_EQ(drawn.code, 0) << drawn.output;
    EXPECT_THAT(drawn.output, HasSubstr("20 images by"));
  }
  static Finished draw(const std::string& out, std::vector<std::string> more, const std::string& config = "gan.yaml") {
    more.insert(more.begin(), {FEWSTEP_BINARY, "data", "teacher", (root() / config).string(), "--model", (root() / "teacher").string(), "--out",
                               (root() / (out + ".h5")).string()});
    more.insert(more.end(), {"--with", "guidance=1.5", "sampling_steps=2", "batch_size=8"});
    return Child(more, root()).wait();
  }
};

TEST_F(FeatureGanRuns, TheTeachersPicturesAreMadeOnce) {
  const TeacherImages images(root() / "teacher.h5");
  EXPECT_EQ(images.size(), 20);
  EXPECT_EQ(images.facts().options, "guidance=1.5 sampling_steps=2");
  EXPECT_EQ(images.facts().split, "train");
  images.check_size(1, 32, 32);
  const Finished again = draw("teacher", {"--count", "20"});
  EXPECT_EQ(again.code, 0) << again.output;
  EXPECT_THAT(again.output, HasSubstr("(20 were there)"));
  const Finished other = draw("teacher", {"--count", "20", "--seed", "4"});
  EXPECT_EQ(other.code, 2);
  EXPECT_THAT(other.output, HasSubstr("holds teacher images of other settings (seed 0 instead of 4); give another --out"));
}

TEST_F(FeatureGanRuns, TwoProcessesEqualOne) {
  const std::vector<std::string> shared = {"trainer.precision=float64", "loop.steps=12"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), shared.begin(), shared.end());
    return more;
  };
  run("gan.yaml", "one", shared);
  run("gan.yaml", "two", with({"--nproc", "2"}));
  run("gan.yaml", "parts", with({"loop.accumulate=4"}));
  for (const std::string other : {"two", "parts"}) {
    const double d = relative_difference(weights("one", 12), weights(other, 12));
    std::printf("with the discriminator, one against %s, 12 iterations, float64: |dw| / |w| = %.2e\n", other.c_str(), d);
    EXPECT_LE(d, 1e-10);
    for (const char* key : {"gan_critic", "gan_accuracy_real", "gan_accuracy_teacher", "gan_r1", "gan_same_sample"})
      EXPECT_NEAR(losses("one", key).back(), losses(other, key).back(), 1e-8) << key << " " << other;
  }
  run("gan.yaml", "without", with({"trainer.gan.weight=0"}));
  EXPECT_GT(relative_difference(weights("one", 12), weights("without", 12)), 1e-7);
}

TEST_F(FeatureGanRuns, AKilledRunGoesOnBitForBit) { kill_and_compare("gan.yaml", "whole", {}); }

TEST_F(FeatureGanRuns, FaultsAreNamed) {
  const auto fails = [&](std::vector<std::string> more, int code, const char* what) {
    const Finished f = train("gan.yaml", "fault", more);
    EXPECT_EQ(f.code, code) << f.output;
    EXPECT_THAT(f.output, HasSubstr(what));
  };
  fails({"trainer.gan.crop.size=9"}, 2, "discriminator crop of 9 x 9 latents is larger than the image of 8 x 8");
  fails({"trainer.gan.features=" + (root() / "nowhere").string()}, 2, "no such folder; train features with configs/distill/dino.yaml");
  fails({"trainer.gan.teacher_images=" + (root() / "none.h5").string()}, 3, "make it with `fewstep data teacher CONFIG");
  fails({"trainer.gan.teacher_images=''"}, 2, "is needed for a real_share below 1");
  write_config("large.yaml", "base: gan.yaml\ndata: {image_size: 40}\n");
  ASSERT_EQ(draw("large", {"--count", "4"}, "large.yaml").code, 0);
  fails({"trainer.gan.teacher_images=" + (root() / "large.h5").string()}, 2, "holds images of 1x40x40");
  run("text.yaml", "stranger", {"loop.steps=2"});
  fails({"trainer.teacher=" + (root() / "stranger").string()}, 2, "set gan.any_teacher: true");
}

}  // namespace
}  // namespace fewstep
