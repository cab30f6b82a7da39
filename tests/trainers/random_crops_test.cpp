// Cut-outs of a batch: everywhere alike, keyed by sample.
#include "trainers/random_crops.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "datasets/fashion_mnist.h"
#include "datasets/loader.h"
#include "src/base/error.h"
#include "src/base/json.h"
#include "src/models/conv_encoder.h"
#include "src/models/model.h"
#include "src/tensor/ops.h"
#include "tests/support/scratch.h"
#include "trainers/classifier_encoder.h"

namespace fewstep {
namespace {

// Every pixel says where it is.
Tensor places(int64_t count, int64_t side) { return at::arange(side * side, at::kFloat).view({1, 1, side, side}).expand({count, 1, side, side}); }

TEST(RandomCrops, AreWindowsAtEveryPlaceThatFits) {
  const Tensor x = places(600, 6), crops = random_crops(x, at::arange(600), 4, 7, 3);
  ASSERT_EQ(crops.sizes(), at::IntArrayRef({600, 1, 4, 4}));
  std::map<int64_t, int64_t> seen;
  for (int64_t i = 0; i < 600; ++i) {
    const auto first = static_cast<int64_t>(crops[i][0][0][0].item<float>());
    ++seen[first];
    EXPECT_TRUE(at::equal(crops[i], x[i].narrow(1, first / 6, 4).narrow(2, first % 6, 4)));
  }
  EXPECT_EQ(seen.size(), 9u);  // 3 x 3 places
  for (const auto& [place, count] : seen) EXPECT_NEAR(static_cast<double>(count), 600.0 / 9, 32) << place;  // 4 deviations
}

TEST(RandomCrops, DependOnSampleAndStepOnly) {
  const Tensor ids = at::arange(40) + 5, x = places(40, 8);
  const Tensor whole = random_crops(x, ids, 3, 1, 2);
  EXPECT_TRUE(at::equal(random_crops(x.slice(0, 9, 20), ids.slice(0, 9, 20), 3, 1, 2), whole.slice(0, 9, 20)));
  EXPECT_FALSE(at::equal(random_crops(x, ids, 3, 1, 3), whole));
  EXPECT_FALSE(at::equal(random_crops(x, ids, 3, 2, 2), whole));
  EXPECT_TRUE(at::equal(random_crops(x, ids, 8, 1, 2), x));
  EXPECT_THROW(random_crops(x, ids, 9, 1, 2), ConfigError);
}

// The encoder of patches: trained on cut-outs, saved as a network of their size, its features calibrated on them.
TEST(RandomCrops, TrainAnEncoderOfTheirSize) {
  const testing::ScratchFolder folder("random-crops");
  const auto world = dist::World::single();
  const auto data = FashionMnistConfig().build(Split::heldout);
  ClassifierEncoderConfig c;
  c.crop = 16, c.partner_images = 64, c.optimizer.ema_decay = 0.9;
  c.model.channels = {4, 8}, c.model.kernels = {3, 3}, c.model.strides = {2, 2}, c.model.blocks = {1, 1};
  c.model.norm_groups = 4, c.model.feature_stages = {0}, c.model.embedding_dim = 4;
  const TrainContext context{.world = *world, .seed = 1, .total_steps = 4, .horizon = 4, .batch_size = 16, .train = *data, .validation = nullptr};
  const auto trainer = c.build(context);
  for (int64_t step = 0; step < 2; ++step) trainer->step(load_range(*data, 16 * step, 16 * step + 16, 1), {.step = step, .seed = 1});
  Metrics validated = trainer->validate(load_range(*data, 0, 32, 1));
  EXPECT_TRUE(validated.reduce(*world).contains("accuracy"));
  trainer->save_model(folder.path());
  EXPECT_EQ(read_json(folder / "encoder/config.json")["image_size"], 16);
  const auto network = models::load_model(folder / "encoder");
  const auto& encoder = dynamic_cast<const models::ConvEncoder&>(*network);
  const Batch some = load_range(*data, 0, 512, 1);
  const Tensor features = encoder.features(random_crops(some.images, some.ids, 16, context.seed, 0));  // those it was calibrated on
  EXPECT_LT(features.mean(0).abs().max().item<float>(), 0.2);
  c.crop = 40;
  EXPECT_THROW(c.build(context), ConfigError);
}

}  // namespace
}  // namespace fewstep
