// One bucket a global batch, every image in every epoch in the carried sense, the same stream for any ranks, workers and
// after resume; buckets that are too small.
#include "datasets/bucket_sampler.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <set>

#include "datasets/loader.h"
#include "src/base/philox.h"
#include "src/tensor/ops.h"
#include "tests/support/message_of.h"

namespace fewstep {
namespace {

using ::testing::HasSubstr;

// Buckets of the given numbers of samples, interleaved; sample i has id 1000 + i and its bucket's size. 8 x 8, 4 x 16, 16 x 4, ...
class Bucketed : public Dataset {
 public:
  explicit Bucketed(std::vector<int64_t> counts, SmallBuckets policy = SmallBuckets::error, bool reframes = true)
      : policy_(policy), reframes_(reframes) {
    const std::vector<BucketSize> all = {{8, 8}, {4, 16}, {16, 4}, {6, 10}, {10, 6}};
    sizes_.assign(all.begin(), all.begin() + static_cast<int64_t>(counts.size()));
    for (bool any = true; any;) {
      any = false;
      for (size_t b = 0; b < counts.size(); ++b)
        if (counts[b]-- > 0) bucket_.push_back(static_cast<int64_t>(b)), any = true;
    }
  }
  int64_t size() const override { return static_cast<int64_t>(bucket_.size()); }
  std::vector<BucketSize> buckets() const override { return sizes_; }
  int64_t bucket_of(int64_t index) const override { return bucket_.at(static_cast<size_t>(index)); }
  SmallBuckets small_buckets() const override { return policy_; }
  bool can_reframe() const override { return reframes_; }
  Sample get(int64_t index, uint64_t seed, int64_t epoch) const override { return get_in(index, bucket_of(index), seed, epoch); }
  Sample get_in(int64_t index, int64_t bucket, uint64_t, int64_t epoch) const override {
    const BucketSize size = sizes_.at(static_cast<size_t>(bucket));
    Sample sample;
    sample.id = 1000 + index;
    sample.image = at::full({1, size.height, size.width}, index % 256, at::kByte);
    sample.caption = fmt::format("epoch {}", epoch);
    return sample;
  }
  std::string description() const override { return "bucketed"; }
  std::string fingerprint() const override { return "0"; }

 private:
  std::vector<BucketSize> sizes_;
  std::vector<int64_t> bucket_;
  SmallBuckets policy_;
  bool reframes_;
};

std::vector<std::vector<int64_t>> members_of(std::vector<int64_t> counts) { return group_by_bucket(Bucketed(std::move(counts)), 1); }

std::map<int64_t, int64_t> seen_in(const BucketSampler& sampler, int64_t first, int64_t last, int64_t batch) {
  std::map<int64_t, int64_t> seen;
  for (int64_t step = first; step < last; ++step)
    for (int64_t i = 0; i < batch; ++i) ++seen[sampler.at(step, i).index];
  return seen;
}

TEST(BucketSampler, DivisibleBucketsShowEveryImageOnceAnEpoch) {
  const int64_t G = 6;
  const BucketSampler sampler(members_of({12, 6, 30}), G, 7);
  EXPECT_EQ(sampler.steps_before(1), 8);
  for (int64_t e = 0; e < 5; ++e) {
    const auto seen = seen_in(sampler, sampler.steps_before(e), sampler.steps_before(e + 1), G);
    EXPECT_EQ(seen.size(), 48u);
    for (const auto& [index, times] : seen) EXPECT_EQ(times, 1) << index;
  }
}

TEST(BucketSampler, RemaindersAreCarriedSoThatEveryImageIsSeenEOrEMinus1Times) {
  const std::vector<int64_t> counts = {13, 7, 29, 11};
  const int64_t G = 6, N = 60;
  const BucketSampler sampler(members_of(counts), G, 7);
  std::map<int64_t, int64_t> seen;
  for (int64_t E = 1; E <= 14; ++E) {
    const int64_t first = sampler.steps_before(E - 1), last = sampler.steps_before(E);
    for (const auto& [index, times] : seen_in(sampler, first, last, G)) seen[index] += times;
    int64_t late = 0, carried = 0;
    for (int64_t i = 0; i < N; ++i) {
      EXPECT_GE(seen[i], E - 1) << "image " << i << " after " << E << " epochs";
      EXPECT_LE(seen[i], E);
      late += seen[i] == E - 1;
    }
    for (int64_t n : counts) carried += E * n % G;
    EXPECT_EQ(late, carried);  // exactly those: nothing is dropped, nothing comes twice
    EXPECT_EQ(last, (E * N - carried) / G);
  }
}

TEST(BucketSampler, ABatchHoldsOneBucketAndEpochsOfItsOwn) {
  const Bucketed data({13, 7, 29, 11});
  const BucketSampler sampler(members_of({13, 7, 29, 11}), 6, 7);
  std::set<int64_t> first_epochs;
  for (int64_t step = 0; step < 200; ++step) {
    const SamplePlace first = sampler.at(step, 0);
    for (int64_t i = 0; i < 6; ++i) {
      const SamplePlace place = sampler.at(step, i);
      EXPECT_EQ(place.bucket, first.bucket);
      EXPECT_EQ(data.bucket_of(place.index), first.bucket);
      EXPECT_LE(place.epoch, sampler.epoch_of(step));           // carried ones are of the epoch before
      EXPECT_GE(place.epoch, sampler.epoch_of(step) - 1);
    }
    if (sampler.epoch_of(step) == 0) first_epochs.insert(first.bucket);
  }
  EXPECT_EQ(first_epochs.size(), 4u);  // every bucket has its turn in every epoch
}

TEST(BucketSampler, EpochOfAnyStepAgreesWithCounting) {
  for (const std::vector<int64_t>& counts : {std::vector<int64_t>{6, 6, 6}, {13, 7, 29, 11}, {1000, 6, 7}, {11}}) {
    const BucketSampler sampler(members_of(counts), 6, 1);
    for (int64_t e = 0; e < 300; ++e)
      for (int64_t step = sampler.steps_before(e); step < sampler.steps_before(e + 1); ++step) ASSERT_EQ(sampler.epoch_of(step), e);
  }
}

// No replay: a step far away costs no more than the first one, and asks nothing of the steps before.
TEST(BucketSampler, AnyStepIsFoundWithoutItsPast) {
  const auto members = members_of({1300, 700, 2900});
  const BucketSampler walked(members, 16, 3);
  for (int64_t step = 0; step < 3000; ++step) walked.at(step, 5);
  for (int64_t step : {2999, 17, 1500}) {
    const SamplePlace a = walked.at(step, 11), b = BucketSampler(members, 16, 3).at(step, 11);
    EXPECT_EQ(a.index, b.index);
    EXPECT_EQ(a.epoch, b.epoch);
  }
  const auto begin = std::chrono::steady_clock::now();
  const SamplePlace far = BucketSampler(members, 16, 3).at(50'000'000'000, 0);
  EXPECT_LT(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(), 1.0);
  EXPECT_NEAR(static_cast<double>(far.epoch), 5e10 * 16 / 4900, 2);
}

TEST(BucketSampler, SeedsAndEpochsGiveOtherOrders) {
  const auto members = members_of({60, 60});
  const auto order = [&](uint64_t seed, int64_t epoch, bool shuffle = true) {
    const BucketSampler sampler(members, 6, seed, shuffle);
    std::vector<int64_t> out;
    for (int64_t step = 20 * epoch; step < 20 * (epoch + 1); ++step)
      for (int64_t i = 0; i < 6; ++i) out.push_back(sampler.at(step, i).index);
    return out;
  };
  EXPECT_NE(order(1, 0), order(2, 0));
  EXPECT_NE(order(1, 0), order(1, 1));
  EXPECT_EQ(order(1, 0, false), order(2, 1, false));
  // Of two equal buckets both orders of neighbours occur about equally often: blocks are shuffled, not taken in turns.
  const BucketSampler sampler(members, 6, 4);
  int64_t same = 0;
  for (int64_t step = 0; step < 2000; ++step) same += sampler.at(step, 0).bucket == sampler.at(step + 1, 0).bucket;
  EXPECT_NEAR(static_cast<double>(same), 2000 * 9.0 / 19.0, 150);
}

// The numbers are part of every result: a change of the stream must be noticed.
TEST(BucketSampler, KeepsItsNumbers) {
  const BucketSampler sampler(members_of({5, 4}), 3, 1);
  std::vector<int64_t> order;
  for (int64_t step = 0; step < 3; ++step)
    for (int64_t i = 0; i < 3; ++i) order.push_back(sampler.at(step, i).index);
  EXPECT_EQ(order, (std::vector<int64_t>{3, 5, 1, 6, 8, 4, 7, 1, 3}));
}

// --- the loader over buckets ---

struct StreamStep {
  std::vector<int64_t> ids, epochs, shape;
  bool operator==(const StreamStep&) const = default;
};

std::vector<int64_t> numbers_of(const Tensor& t) { return {t.const_data_ptr<int64_t>(), t.const_data_ptr<int64_t>() + t.numel()}; }

// The global batches of steps [first, last), put together from W ranks' shares.
std::vector<StreamStep> bucket_stream(const Dataset& data, int world, int64_t workers, int64_t first, int64_t last) {
  std::vector<StreamStep> steps(static_cast<size_t>(last - first), {std::vector<int64_t>(12), std::vector<int64_t>(12), {}});
  for (int rank = 0; rank < world; ++rank) {
    Loader loader(data, {.batch_size = 12, .rank = rank, .world_size = world, .seed = 5, .first_step = first, .workers = workers,
                         .prefetch = 3});
    for (StreamStep& step : steps) {
      const Batch batch = loader.next();
      const auto ids = numbers_of(batch.ids), epochs = numbers_of(batch.epochs);
      for (size_t i = 0; i < ids.size(); ++i) {
        step.ids[i * static_cast<size_t>(world) + static_cast<size_t>(rank)] = ids[i];
        step.epochs[i * static_cast<size_t>(world) + static_cast<size_t>(rank)] = epochs[i];
        EXPECT_EQ(batch.captions[i], fmt::format("epoch {}", epochs[i]));
      }
      const std::vector<int64_t> shape = batch.images.sizes().slice(2).vec();
      EXPECT_TRUE(step.shape.empty() || step.shape == shape) << "ranks with different buckets in one step";
      step.shape = shape;
    }
  }
  return steps;
}

TEST(BucketLoader, StreamIsTheSameForAnyRanksWorkersAndAfterResume) {
  const Bucketed data({37, 18, 25});
  const auto reference = bucket_stream(data, 1, 0, 0, 30);
  std::set<std::vector<int64_t>> shapes;
  for (const StreamStep& step : reference) shapes.insert(step.shape);
  EXPECT_EQ(shapes.size(), 3u);
  for (int world : {1, 2, 4})
    for (int64_t workers : {0, 1, 3}) {
      EXPECT_EQ(bucket_stream(data, world, workers, 0, 30), reference) << world << " ranks, " << workers << " workers";
      const auto resumed = bucket_stream(data, world, workers, 13, 30);
      EXPECT_TRUE(std::equal(resumed.begin(), resumed.end(), reference.begin() + 13));
    }
}

TEST(BucketLoader, KnowsItsEpochs) {
  const Bucketed data({24, 12});
  const Loader bucketed(data, {.batch_size = 12, .workers = 0});
  EXPECT_EQ(bucketed.epoch_of(2), 0);
  EXPECT_EQ(bucketed.epoch_of(3), 1);
  const Bucketed plain({25});
  const Loader loader(plain, {.batch_size = 10, .workers = 0});
  EXPECT_EQ(loader.epoch_of(2), 0);
  EXPECT_EQ(loader.epoch_of(3), 1);
}

TEST(BucketLoader, SmallBucketsAreNamedMergedOrDropped) {
  const auto load = [](const Dataset& data, int64_t batch) { Loader(data, {.batch_size = batch, .workers = 0}); };
  const std::string error = message_of<ConfigError>([&] { load(Bucketed({40, 3, 20, 0}), 8); });
  EXPECT_THAT(error, HasSubstr("1 of 4 buckets have fewer images than a global batch of 8: 4x16 has 3"));
  EXPECT_THAT(error, HasSubstr("lower loop.batch_size"));
  EXPECT_THAT(error, HasSubstr("small_buckets: merge"));

  // 6 x 10 has 3 images: the nearest aspect is 8 x 8; then 4 x 16 with 5: nearest is 8 x 8, too.
  const auto merged = group_by_bucket(Bucketed({40, 5, 20, 3}, SmallBuckets::merge), 8);
  EXPECT_EQ(merged[0].size(), 48u);
  EXPECT_EQ(merged[1].size() + merged[3].size(), 0u);
  EXPECT_EQ(merged[2].size(), 20u);
  EXPECT_TRUE(std::is_sorted(merged[0].begin(), merged[0].end()));
  const Bucketed data({40, 5, 20, 3}, SmallBuckets::merge);
  Loader loader(data, {.batch_size = 8, .workers = 2});
  std::set<int64_t> ids;
  for (int64_t step = 0; step < 9; ++step) {
    const Batch batch = loader.next();
    EXPECT_NE(batch.images.size(3), 16);
    for (int64_t id : numbers_of(batch.ids)) ids.insert(id);
  }
  EXPECT_GE(ids.size(), 60u);
  // Two small ones that are large enough together.
  const auto together = group_by_bucket(Bucketed({0, 5, 0, 6}, SmallBuckets::merge), 8);
  EXPECT_EQ(together[3].size(), 11u);

  const auto dropped = group_by_bucket(Bucketed({40, 3, 20}, SmallBuckets::drop), 8);
  EXPECT_EQ(dropped[1].size(), 0u);
  EXPECT_EQ(dropped[0].size() + dropped[2].size(), 60u);

  EXPECT_THAT(message_of<ConfigError>([&] { load(Bucketed({4, 3}, SmallBuckets::merge), 8); }), HasSubstr("7 images for a global batch of 8"));
  EXPECT_THAT(message_of<ConfigError>([&] { load(Bucketed({7, 7}, SmallBuckets::drop), 8); }), HasSubstr("every bucket"));
  EXPECT_THAT(message_of<ConfigError>([&] { load(Bucketed({9, 7}, SmallBuckets::merge, false), 8); }), HasSubstr("cannot be framed"));
}

TEST(BucketLoader, ValidationBatchesAreOfOneBucketAndEqualShares) {
  const Bucketed data({23, 8, 14});
  for (int64_t ranks : {1, 2, 4}) {
    std::set<int64_t> used;
    for (const auto& batch : validation_batches(data, 40, 3, ranks)) {
      EXPECT_EQ(static_cast<int64_t>(batch.size()) % ranks, 0);
      EXPECT_LE(static_cast<int64_t>(batch.size()), 3 * ranks);
      for (int64_t i : batch) {
        EXPECT_EQ(data.bucket_of(i), data.bucket_of(batch.front()));
        EXPECT_LT(i, 40);
        EXPECT_TRUE(used.insert(i).second);
      }
      EXPECT_EQ(load_indices(data, batch, 0).size(), static_cast<int64_t>(batch.size()));
    }
    EXPECT_GE(static_cast<int64_t>(used.size()), 40 - 3 * (ranks - 1));
    if (ranks == 1) { EXPECT_EQ(used.size(), 40u); }
  }
  // One bucket: consecutive samples, as ever.
  const auto plain = validation_batches(Bucketed({10}), 9, 2, 2);
  EXPECT_EQ(plain, (std::vector<std::vector<int64_t>>{{0, 1, 2, 3}, {4, 5, 6, 7}}));
}

}  // namespace
}  // namespace fewstep
