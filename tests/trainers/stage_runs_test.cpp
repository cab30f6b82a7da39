// Staged diffusion training as a user runs it: what goes on over a boundary, resume across it, changed stages.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "src/base/files.h"
#include "src/tensor/ops.h"
#include "tests/trainers/diffusion_runs.h"

namespace fewstep {
namespace {
namespace fs = std::filesystem;
using ::testing::HasSubstr;
using testing::Finished;
using testing::kOtherStages;
using testing::kSameStages;

using StageRuns = testing::DiffusionRuns;

TEST_F(StageRuns, StagesWithoutSettingsAreOneRunBitForBit) {
  run("class.yaml", "plain");
  run("class.yaml", "staged-same", {kSameStages});
  expect_same_files("plain", "staged-same", 6);
  EXPECT_EQ(losses("plain", "loss"), losses("staged-same", "loss"));
}

TEST_F(StageRuns, AStageGoesOnFromTheWeightsOfTheOneBefore) {
  // In the second stage no weight moves: its end is the end of the first.
  run("text.yaml", "frozen", {"stages=[{name: a, steps: 4}, {name: b, steps: 2, set: {trainer.optimizer.lr: 1.0e-30, data.image_size: 40}}]"});
  EXPECT_EQ(relative_difference(weights("frozen", 4), weights("frozen", 6)), 0);
  // The moving average goes on, or starts again at the weights; so do the moments.
  run("class.yaml", "anew", {"loop.steps=5", "stages=[{name: a, steps: 4}, {name: b, steps: 1, set: {trainer.optimizer.lr: 1.0e-30}, carry: {ema: false, optimizer: false}}]"});
  EXPECT_EQ(weights("anew", 5, "optimizer").at("diffusion.updates").item<int64_t>(), 1);
  EXPECT_EQ(weights("anew", 5, "ema").at("diffusion.ema_updates").item<int64_t>(), 1);
  EXPECT_TRUE(weights("anew", 5, "ema").at("diffusion.unet.conv_in.weight").equal(weights("anew", 4).at("diffusion.unet.conv_in.weight")));
  EXPECT_EQ(weights("frozen", 6, "ema").at("diffusion.ema_updates").item<int64_t>(), 6);
  // What the first stage took from its data stays: the tokenizer and the scale of pixels.
  EXPECT_EQ(read_text(model("frozen", 4) / "tokenizer" / "vocab.json"), read_text(model("frozen", 6) / "tokenizer" / "vocab.json"));
  EXPECT_EQ(read_text(model("frozen", 4) / "latent_space" / "latent_space_config.json"),
            read_text(model("frozen", 6) / "latent_space" / "latent_space_config.json"));
}

TEST_F(StageRuns, ResumeCrossesABoundaryBitForBit) {
  const std::vector<std::string> more = {kOtherStages, "loop.checkpoint_every=2", "loop.keep_last=0"};
  auto again = more;
  again.emplace_back("--resume");
  run("text.yaml", "stages-whole", more);
  for (const int64_t from : {2, 3, 4}) {  // inside the first stage, at the boundary, inside the second
    const std::string name = "stages-from-" + std::to_string(from);
    fs::copy(root() / "stages-whole", root() / name, fs::copy_options::recursive);
    for (int64_t step = from + 1; step <= 6; ++step) fs::remove_all(checkpoint(name, step));
    const Finished resumed = train("text.yaml", name, again);
    ASSERT_EQ(resumed.code, 0) << resumed.output;
    EXPECT_THAT(resumed.output, HasSubstr("(step " + std::to_string(from) + " of 6)"));
    expect_same_files("stages-whole", name, 6);
  }
  // The control: the settings of the second stage do something.
  run("text.yaml", "stages-without", {kSameStages});
  EXPECT_GT(relative_difference(weights("stages-whole", 6), weights("stages-without", 6)), 1e-5);
}

TEST_F(StageRuns, APastStageCannotBeChangedAndOneToComeCan) {
  run("class.yaml", "changed", {"loop.steps=4", "stages=[{name: a, steps: 2}, {name: b, steps: 2}]"});
  const Finished past = train("class.yaml", "changed", {"loop.steps=4", "stages=[{name: a, steps: 2, set: {trainer.loss.noise_offset: 0.1}}, {name: b, steps: 2}]", "--resume"});
  EXPECT_EQ(past.code, 2) << past.output;
  EXPECT_THAT(past.output, HasSubstr("stages[0].set.trainer.loss.noise_offset: (absent) -> 0.1"));
  const Finished shorter = train("class.yaml", "changed", {"loop.steps=7", "stages=[{name: a, steps: 2}, {name: b, steps: 1}, {name: c, steps: 4}]", "--resume"});
  EXPECT_EQ(shorter.code, 2) << shorter.output;
  EXPECT_THAT(shorter.output, HasSubstr("give stage 2 at least 2 steps"));
  const Finished more = train("class.yaml", "changed", {"stages=[{name: a, steps: 2}, {name: b, steps: 3}, {name: c, steps: 1, set: {loop.batch_size: 4}}]", "--resume"});
  EXPECT_EQ(more.code, 0) << more.output;
  EXPECT_TRUE(fs::exists(checkpoint("changed", 6)));
}

}  // namespace
}  // namespace fewstep
