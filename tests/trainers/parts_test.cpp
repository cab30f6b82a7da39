// The parts of trainers against closed forms: losses, metrics, codebook, corruptions.
#include <gtest/gtest.h>

#include "src/base/error.h"
#include "src/tensor/ops.h"
#include "trainers/codebook.h"
#include "trainers/corruptions.h"
#include "trainers/losses.h"
#include "trainers/micro_batches.h"
#include "trainers/trainer.h"

namespace fewstep {
namespace {

// Flat grey pictures: sample i has label i % 3 and brightness by label.
class GreyPictures : public Dataset {
 public:
  int64_t size() const override { return 64; }
  Sample get(int64_t index, uint64_t, int64_t) const override {
    return {.id = index, .image = at::full({1, 16, 16}, 40 + 80 * (index % 3), at::kByte), .caption = "grey", .label = index % 3, .attributes = {}};
  }
  std::string description() const override { return "grey pictures"; }
  std::string fingerprint() const override { return "grey"; }
};

Batch grey_batch(int64_t n) {
  std::vector<Sample> samples;
  for (int64_t i = 0; i < n; ++i) samples.push_back(GreyPictures().get(i, 0, 0));
  return collate(samples);
}

TEST(Losses, CrossEntropyOfEqualLogitsIsTheLogarithmOfTheirNumber) {
  const Tensor logits = at::zeros({2, 3, 8}), targets = at::zeros({2, 3}, at::kLong);
  EXPECT_NEAR(cross_entropy_sum(logits, targets).item<double>(), 6 * std::log(8.0), 1e-5);
}

TEST(Losses, HingeIsZeroBeyondTheMargin) {
  EXPECT_EQ(hinge_critic(at::full({4}, 1.5), at::full({4}, -2.0)).item<double>(), 0);
  EXPECT_EQ(hinge_critic(at::zeros({4}), at::zeros({4})).item<double>(), 2);
  EXPECT_EQ(hinge_generator(at::full({4}, 3.0)).item<double>(), -3);
}

TEST(Losses, ContrastiveWithOnePositiveIsTheClassicalOne) {
  const Tensor logits = at::randn({4, 4}), eye = at::eye(4), ones = at::ones({4});
  const Tensor targets = at::arange(4);
  // Images are the identity, so that texts^T are the logits.
  const double expected = 0.5 * (cross_entropy_sum(logits, targets) + cross_entropy_sum(logits.t(), targets)).item<double>();
  EXPECT_NEAR(contrastive_sum(eye, logits.t(), at::ones({}), eye, ones).item<double>(), expected, 1e-5);
  // Two equal captions share their rows' probability: never better than log 2 when told apart is asked, 0 when it is not.
  const Tensor same = at::full({2, 2}, 50.0);
  EXPECT_NEAR(contrastive_sum(at::eye(2), same, at::ones({}), at::eye(2), at::ones({2})).item<double>(), 2 * std::log(2.0), 1e-5);
}

TEST(Metrics, MeansAreSumsOverCounts) {
  const auto world = dist::World::single();
  Metrics a, b;
  a.add("loss", 6.0, 2);
  b.add("loss", at::scalar_tensor(4.0), 3);
  a.merge(b);
  a.add("loss_t1", 0.0, 0);
  const auto means = a.reduce(*world);
  EXPECT_DOUBLE_EQ(means.at("loss"), 2.0);
  EXPECT_FALSE(means.contains("loss_t1")) << "nothing fell into it";
  EXPECT_TRUE(a.empty());
}

TEST(MicroBatches, CoverTheBatchInOrderAndMarkTheLast) {
  std::vector<int64_t> first;
  int lasts = 0;
  for_micro_batches(grey_batch(6), 3, [&](const Batch& micro, bool last) {
    EXPECT_EQ(micro.size(), 2);
    first.push_back(micro.ids[0].item<int64_t>());
    lasts += last;
  });
  EXPECT_EQ(first, (std::vector<int64_t>{0, 2, 4}));
  EXPECT_EQ(lasts, 1);
}

TEST(Codebook, FollowsTheMeanOfWhatFallsToEachCode) {
  const auto world = dist::World::single();
  const Tensor codes = at::zeros({2, 1});
  MovingCodebook book(codes, {.decay = 0.5, .dead_below = 0.0, .revive_until = 1}, *world);
  const Tensor latents = at::tensor({1.0, 3.0, 10.0}).view({1, 3, 1}).to(at::kFloat), indices = at::tensor({0, 0, 1}).view({1, 3}).to(at::kLong);
  for (int step = 0; step < 60; ++step) book.update(latents, indices, false, 1, step);
  EXPECT_NEAR(codes[0].item<double>(), 2.0, 1e-5);
  EXPECT_NEAR(codes[1].item<double>(), 10.0, 1e-5);
  const double p = 2.0 / 3;  // perplexity of (2/3, 1/3)
  EXPECT_NEAR(book.perplexity(), std::exp(-p * std::log(p) - (1 - p) * std::log(1 - p)), 1e-3);
}

TEST(Codebook, DeadCodesBecomeLatentsAndStateRoundTrips) {
  const auto world = dist::World::single();
  const Tensor codes = at::full({4, 2}, 99.0), latents = at::rand({2, 8, 2});
  MovingCodebook book(codes, {}, *world);
  EXPECT_TRUE(book.empty());
  book.update(latents, at::zeros({2, 8}, at::kLong), true, 7, 0);
  EXPECT_EQ(book.revived(), 4);
  const Tensor distance = at::cdist(codes, latents.flatten(0, 1));
  EXPECT_LT(std::get<0>(distance.min(1)).max().item<double>(), 1e-5) << "every code is one of the latents";
  for (int step = 1; step < 400; ++step) book.update(latents, at::zeros({2, 8}, at::kLong), false, 7, step);
  book.update(latents, at::zeros({2, 8}, at::kLong), true, 7, 400);
  EXPECT_EQ(book.revived(), 3) << "all but the one in use";

  const Tensor other_codes = at::zeros({4, 2});
  MovingCodebook other(other_codes, {}, *world);
  other.load_state(book.state());
  EXPECT_TRUE(other_codes.equal(codes));
  MovingCodebook misfit(at::zeros({5, 2}), {}, *world);
  EXPECT_THROW(misfit.load_state(book.state()), DataError);
}

TEST(Corruptions, DependOnTheSampleNotOnItsBatch) {
  const GreyPictures data;
  const PartnerPool pool(data, 64, 1);
  const Batch batch = grey_batch(48);
  const Corrupted all = corrupt(batch, pool, 0.3, 1, 5), tail = corrupt(batch.slice(20, 48), pool, 0.3, 1, 5);
  EXPECT_LT((all.images.narrow(0, 20, 28) - tail.images).abs().max().item<double>(), 1e-5);
  EXPECT_TRUE(all.levels.narrow(0, 20, 28).equal(tail.levels));
  EXPECT_FALSE(all.levels.equal(corrupt(batch, pool, 0.3, 1, 6).levels)) << "another step, another draw";
}

TEST(Corruptions, LevelsSayWhatWasDone) {
  const GreyPictures data;
  const PartnerPool pool(data, 64, 1);
  Batch batch = grey_batch(600);
  batch.images = at::rand({600, 1, 16, 16}) * 2 - 1;
  const Corrupted c = corrupt(batch, pool, 0.3, 3, 0);
  const Tensor touched = c.levels.gt(0).sum(1);  // [B]
  EXPECT_LE(touched.max().item<int64_t>(), 1);
  EXPECT_GE(c.levels.masked_select(c.levels.gt(0)).min().item<double>(), 0.2);
  EXPECT_NEAR(touched.eq(0).to(at::kDouble).mean().item<double>(), 0.3, 0.08);
  const Tensor changed = (c.images - batch.images).abs().amax({1, 2, 3}).gt(1e-4);
  EXPECT_FALSE(changed.logical_and(touched.eq(0)).any().item<bool>()) << "untouched rows are untouched";
  // Mixed cells and ghosts may come out as the picture itself; the other corruptions always show.
  for (const int64_t k : {0, 1, 2, 3, 6})
    EXPECT_TRUE(changed.masked_select(c.levels.select(1, k).gt(0)).all().item<bool>()) << corruption_names()[static_cast<size_t>(k)];
  EXPECT_LE(c.images.abs().max().item<double>(), 1.0);
  for (const Tensor& column : c.levels.unbind(1)) EXPECT_GT(column.gt(0).sum().item<int64_t>(), 20);
}

}  // namespace
}  // namespace fewstep
