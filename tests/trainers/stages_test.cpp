// Stages of a run: their configs, where errors in them are, their steps, and what goes on over a boundary.
#include "trainers/stages.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "datasets/fashion_mnist.h"
#include "src/base/error.h"
#include "src/config/config.h"
#include "src/config/diff.h"
#include "src/tensor/ops.h"
#include "tests/support/message_of.h"
#include "trainers/loop.h"
#include "trainers/trainable_set.h"
#include "trainers/vq_tokenizer.h"

namespace fewstep {
namespace {
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr const char* kStaged = R"(name: staged
data: {kind: fashion_mnist, image_size: 28}
loop: {batch_size: 8}
stages:
  - {name: small, steps: 5}
  - name: large
    steps: 7
    set:
      data: {image_size: 32}
      loop.batch_size: 12
      trainer.optimizer.lr: 5.0e-4
    carry: {optimizer: false}
  - {name: last, steps: 2, set: {trainer.codebook.decay: 0.5}}
trainer: {kind: vq_tokenizer, optimizer: {lr: 2.0e-3}}
)";

TEST(Stages, EachIsTheRunWithItsSettings) {
  auto run = config::parse<RunConfig>(kStaged);
  EXPECT_EQ(run.loop.steps, 14);
  const std::vector<Stage> stages = plan_stages(run);
  ASSERT_EQ(stages.size(), 3u);
  EXPECT_EQ(stages[0].first, 0);
  EXPECT_EQ(stages[1].first, 5);
  EXPECT_EQ(stages[2].end, 14);
  EXPECT_EQ(stages[1].images_before, 40);
  EXPECT_EQ(stages[2].images_before, 40 + 7 * 12);
  EXPECT_TRUE(stages[1].carry.ema);
  EXPECT_FALSE(stages[1].carry.optimizer);
  const auto size = [](const Stage& s) { return dynamic_cast<const FashionMnistConfig&>(*s.config->data).image_size; };
  const auto lr = [](const Stage& s) { return dynamic_cast<const VqTokenizerConfig&>(*s.config->trainer).optimizer.lr; };
  EXPECT_EQ(size(stages[0]), 28);
  EXPECT_EQ(size(stages[1]), 32);
  EXPECT_EQ(size(stages[2]), 28);  // settings are of one stage, over the run's own
  EXPECT_EQ(lr(stages[1]), 5e-4);
  EXPECT_EQ(lr(stages[2]), 2e-3);
  EXPECT_EQ(stages[1].config->loop.batch_size, 12);
  EXPECT_TRUE(stages[1].config->stages.empty());
}

TEST(Stages, TheResolvedConfigSaysTheSame) {
  auto run = config::parse<RunConfig>(kStaged);
  const std::string resolved = config::to_yaml(run);
  auto again = config::parse<RunConfig>(resolved);
  EXPECT_EQ(config::to_yaml(again), resolved);
  EXPECT_THAT(resolved, HasSubstr("loop.batch_size: 12"));
}

TEST(Stages, ARunWithoutStagesIsOne) {
  auto run = config::parse<RunConfig>("name: a\ndata: {kind: fashion_mnist}\nloop: {steps: 9}\ntrainer: {kind: vq_tokenizer}\n");
  const std::vector<Stage> stages = plan_stages(run);
  ASSERT_EQ(stages.size(), 1u);
  EXPECT_EQ(stages[0].config.get(), &run);
  EXPECT_EQ(stages[0].end, 9);
  EXPECT_EQ(stages[0].loader_step(7), 7);
}

TEST(Stages, StepsBelongToStages) {
  auto run = config::parse<RunConfig>(kStaged);
  const std::vector<Stage> stages = plan_stages(run);
  const size_t expected[] = {0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2};
  for (int64_t step = 0; step <= 14; ++step) EXPECT_EQ(stage_of(stages, step), expected[step]) << step;
}

// With the batch size as before the stream goes on where it was; with another one no position of the stream comes twice.
TEST(Stages, TheStreamOfSamplesGoesOn) {
  auto run = config::parse<RunConfig>(kStaged);
  const std::vector<Stage> stages = plan_stages(run);
  EXPECT_EQ(stages[1].loader_step(5), 4);         // 40 images of 12: 4 * 12 >= 40
  EXPECT_EQ(stages[1].loader_step(11), 10);
  EXPECT_EQ(stages[2].loader_step(12), 16);       // 124 images of 8
  auto same = config::parse<RunConfig>("name: a\ndata: {kind: fashion_mnist}\nstages: [{name: a, steps: 3}, {name: b, steps: 4}]\n"
                                       "trainer: {kind: vq_tokenizer}\n");
  EXPECT_EQ(plan_stages(same)[1].loader_step(3), 3);
}

// Mistakes in settings of a stage are reported where they stand, with all others.
TEST(Stages, MistakesInSettingsHaveTheirPlace) {
  const std::string text = R"(name: staged
data: {kind: fashion_mnist}
sede: 1
stages:
  - name: a
    steps: 5
    set: {trainer.optimizer.lrr: 1, data.image_size: 3}
  - name: b
    steps: 0
    set:
      trainer: {optimizer: {lr: fast}}
      data.kind: fashion
  - name: c
    steps: 1
    set: {name: other, trainer.kind: contrastive, loop.steps: 4}
trainer: {kind: vq_tokenizer}
)";
  const std::string message = message_of<ConfigError>([&] { config::parse<RunConfig>(text, "f"); });
  EXPECT_THAT(message, AllOf(HasSubstr("f:3:1: unknown key 'sede' (did you mean 'seed'?)"),
                             HasSubstr("f:7:11: unknown key 'trainer.optimizer.lrr' (did you mean 'lr'?)"),
                             HasSubstr("f:7:54: data.image_size: 3 must be"),
                             HasSubstr("f:9:12: stages[1].steps: 0 must be at least 1"),
                             HasSubstr("f:11:33: trainer.optimizer.lr: expected a number, got 'fast'"),
                             HasSubstr("f:12:18: data.kind: 'fashion' is not one of")));
  EXPECT_THAT(message, HasSubstr("f:15:5: stages[2].set: a stage sets keys of data, trainer (not its kind) and loop (not steps, keep_last), "
                                 "not name, trainer.kind, loop.steps"));
}

TEST(Stages, AnotherNumberOfStepsIsRefused) {
  const std::string text = "name: a\ndata: {kind: fashion_mnist}\nloop: {steps: 11}\nstages: [{name: a, steps: 3}]\ntrainer: {kind: vq_tokenizer}\n";
  EXPECT_THAT(message_of<ConfigError>([&] { config::parse<RunConfig>(text, "f"); }),
              HasSubstr("f:3:1: loop: steps is 11, but those of the stages sum up to 3: leave it out"));
}

TEST(Stages, PartsThatMakeTheNetworkStay) {
  const std::string text = R"(name: a
data: {kind: fashion_mnist}
stages: [{name: s, steps: 3, set: {trainer.unet.block_out_channels: [8, 8], trainer.loss.noise_offset: 0.05}}]
trainer: {kind: diffusion, latents: {kind: pixel_unshuffle}, conditioner: {kind: class}}
)";
  const std::string message = message_of<ConfigError>([&] { config::parse<RunConfig>(text, "f"); });
  EXPECT_THAT(message, HasSubstr("f:3:1: stages: what makes the network cannot change within a run: trainer.unet.block_out_channels (stage 's')"));
  EXPECT_THAT(message, Not(HasSubstr("noise_offset")));
}

TEST(Stages, DifferencesOfListsOfMapsAreNamedByItem) {
  const auto d = config::differences("s: [{a: 1, b: 2}, {a: 3}]\n", "s: [{a: 1, b: 5}, {a: 3}, {a: 4}]\n");
  ASSERT_EQ(d.size(), 2u);
  EXPECT_EQ(d[0].key, "s[0].b");
  EXPECT_EQ(d[1].key, "s[2].a");
}

// The learning rate of a stage is that of a run as long as the stage, where schedules are asked to begin anew.
TEST(Stages, ALearningRateMaySpanTheStage) {
  const auto world = dist::World::single();
  OptimizerConfig c;
  c.warmup_steps = 2;
  const NamedTensors p = {{"w", at::ones({2, 2}).set_requires_grad(true)}}, q = {{"w", at::ones({2, 2}).set_requires_grad(true)}};
  const TrainableSet over_run("a", p, c, *world, 20), over_stage("b", q, c, *world, Horizon(12, 8));
  for (int64_t step = 12; step < 20; ++step) {
    EXPECT_EQ(over_run.learning_rate(step), learning_rate(c, step, 20));
    EXPECT_EQ(over_stage.learning_rate(step), learning_rate(c, step - 12, 8));
  }
}

using Files = std::map<std::string, TensorMap>;

TEST(Stages, WhatIsCarriedGoesOnAndTheRestStartsAnew) {
  const Tensor one = at::ones({2}), two = at::full({2}, 2.0), three = at::full({2}, 3.0), zero = at::zeros({2});
  const Files saved = {{"weights", {{"n.w", one}}}, {"optimizer", {{"n.exp_avg.w", two}}}, {"ema", {{"n.w", three}, {"n.ema_updates", at::full({}, 9)}}}};
  const Files fresh = {{"weights", {{"n.w", zero}}}, {"optimizer", {{"n.exp_avg.w", zero}}}, {"ema", {{"n.w", zero}, {"n.ema_updates", at::full({}, 0)}}}};
  const Files all = carry_over(saved, fresh, {});
  EXPECT_TRUE(all.at("weights").at("n.w").equal(one));
  EXPECT_TRUE(all.at("optimizer").at("n.exp_avg.w").equal(two));
  EXPECT_TRUE(all.at("ema").at("n.w").equal(three));
  EXPECT_EQ(all.at("ema").at("n.ema_updates").item<int64_t>(), 9);
  const Files none = carry_over(saved, fresh, {.ema = false, .optimizer = false});
  EXPECT_TRUE(none.at("weights").at("n.w").equal(one));
  EXPECT_TRUE(none.at("optimizer").at("n.exp_avg.w").equal(zero));
  EXPECT_TRUE(none.at("ema").at("n.w").equal(one)) << "a moving average begins at the weights";
  EXPECT_EQ(none.at("ema").at("n.ema_updates").item<int64_t>(), 0);
  // A stage that turns the moving average on, and one that turns it off.
  Files without = saved;
  without.erase("ema");
  EXPECT_TRUE(carry_over(without, fresh, {}).at("ema").at("n.w").equal(one));
  Files off = fresh;
  off.erase("ema");
  EXPECT_TRUE(carry_over(saved, off, {}).at("weights").at("n.w").equal(one));
}

}  // namespace
}  // namespace fewstep
