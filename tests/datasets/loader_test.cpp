// The stateless stream and the threaded loader: exact ids over ranks, workers and resume; errors; batches.
#include "datasets/loader.h"

#include <ATen/Parallel.h>
#include <gmock/gmock.h>

#include <algorithm>
#include <set>
#include <thread>

#include "src/tensor/ops.h"
#include "tests/datasets/temporary_folder.h"

namespace fewstep {
namespace {

using testing::HasSubstr;

// Sample i has id 1000 + i and a picture of i; the one at `broken` cannot be read.
class Counting : public Dataset {
 public:
  explicit Counting(int64_t size, int64_t broken = -1) : size_(size), broken_(broken) {}
  int64_t size() const override { return size_; }
  Sample get(int64_t index, uint64_t seed, int64_t epoch) const override {
    if (index == broken_) fail<DataError>("picture {} is corrupt", index);
    Sample sample;
    sample.id = 1000 + index;
    sample.image = at::full({1, 2, 2}, index % 256, at::kByte);
    sample.caption = fmt::format("{} of epoch {} and seed {}", index, epoch, seed);
    sample.label = index % 3;
    return sample;
  }
  std::string description() const override { return "counting"; }
  std::string fingerprint() const override { return "0"; }

 private:
  int64_t size_, broken_;
};

std::vector<int64_t> ids_of(const Batch& batch) {
  return {batch.ids.const_data_ptr<int64_t>(), batch.ids.const_data_ptr<int64_t>() + batch.size()};
}

// The global batches of steps [first, last), put together from W ranks' shares.
std::vector<std::vector<int64_t>> stream(const Dataset& data, int world, int64_t workers, int64_t first, int64_t last) {
  std::vector<std::vector<int64_t>> steps(static_cast<size_t>(last - first), std::vector<int64_t>(12));
  for (int rank = 0; rank < world; ++rank) {
    Loader loader(data, {.batch_size = 12,
                         .rank = rank,
                         .world_size = world,
                         .seed = 5,
                         .first_step = first,
                         .workers = workers,
                         .prefetch = 3});
    for (auto& step : steps) {
      const auto share = ids_of(loader.next());
      for (size_t i = 0; i < share.size(); ++i)
        step[i * static_cast<size_t>(world) + static_cast<size_t>(rank)] = share[i];
    }
  }
  return steps;
}

TEST(StreamSampler, EachEpochIsAnotherPermutation) {
  const StreamSampler sampler(101, 3);
  std::vector<std::vector<int64_t>> epochs;
  for (int64_t e = 0; e < 4; ++e) {
    std::vector<int64_t> order;
    for (int64_t i = 0; i < 101; ++i) {
      const auto place = sampler.at(e * 101 + i);
      EXPECT_EQ(place.epoch, e);
      order.push_back(place.index);
    }
    EXPECT_EQ(std::set<int64_t>(order.begin(), order.end()).size(), 101u);
    EXPECT_EQ(std::find(epochs.begin(), epochs.end(), order), epochs.end());
    epochs.push_back(order);
  }
  EXPECT_EQ(StreamSampler(101, 3).at(250).index, sampler.at(250).index);  // without a past
  EXPECT_EQ(sampler.at(17).index, epochs[0][17]);                         // back in time
  EXPECT_EQ(StreamSampler(5, 3, false).at(13).index, 3);
}

TEST(StreamSampler, EveryPlaceIsEquallyLikely) {
  std::vector<int64_t> counts(25);
  for (uint64_t seed = 0; seed < 5000; ++seed) {
    const StreamSampler sampler(5, seed);
    for (int64_t i = 0; i < 5; ++i) ++counts[static_cast<size_t>(i * 5 + sampler.at(i).index)];
  }
  for (int64_t count : counts) EXPECT_NEAR(static_cast<double>(count), 1000, 130);  // 4.6 sigma
}

// The numbers are part of every result: a change of the stream must be noticed. (The same ten come from Philox and
// Fisher-Yates written out in Python.)
TEST(StreamSampler, KeepsItsNumbers) {
  const StreamSampler sampler(10, 1);
  std::vector<int64_t> order;
  for (int64_t i = 0; i < 10; ++i) order.push_back(sampler.at(i).index);
  EXPECT_EQ(order, (std::vector<int64_t>{8, 3, 4, 9, 6, 2, 1, 0, 7, 5}));
}

TEST(Loader, StreamIsTheSameForAnyRanksWorkersAndAfterResume) {
  const Counting data(50);  // epochs end inside batches
  const auto reference = stream(data, 1, 0, 0, 20);
  for (int world : {1, 2, 4})
    for (int64_t workers : {0, 1, 3}) {
      EXPECT_EQ(stream(data, world, workers, 0, 20), reference) << world << " ranks, " << workers << " workers";
      const auto resumed = stream(data, world, workers, 7, 20);
      EXPECT_TRUE(std::equal(resumed.begin(), resumed.end(), reference.begin() + 7));
    }
  std::vector<int64_t> first_epoch;
  for (const auto& step : reference) first_epoch.insert(first_epoch.end(), step.begin(), step.end());
  first_epoch.resize(50);
  std::sort(first_epoch.begin(), first_epoch.end());
  for (int64_t i = 0; i < 50; ++i) EXPECT_EQ(first_epoch[static_cast<size_t>(i)], 1000 + i);
}

TEST(Loader, BatchHoldsWhatTheSamplesHold) {
  const Counting data(300);
  Loader loader(data, {.batch_size = 4, .seed = 9, .workers = 2});
  const Batch batch = loader.next();
  ASSERT_EQ(batch.images.sizes().vec(), (std::vector<int64_t>{4, 1, 2, 2}));
  for (int64_t i = 0; i < 4; ++i) {
    const int64_t index = batch.ids[i].item<int64_t>() - 1000;
    EXPECT_FLOAT_EQ(batch.images[i][0][1][1].item<float>(), static_cast<float>(index % 256) / 127.5f - 1.0f);
    EXPECT_EQ(batch.labels[i].item<int64_t>(), index % 3);
    EXPECT_EQ(batch.captions[static_cast<size_t>(i)], fmt::format("{} of epoch 0 and seed 9", index));
  }
  const Batch part = batch.slice(1, 3);
  EXPECT_EQ(part.size(), 2);
  EXPECT_EQ(part.captions[0], batch.captions[1]);
  EXPECT_EQ(part.images.data_ptr(), batch.images[1].data_ptr());  // a view
  EXPECT_EQ(batch.slice(2, 2).size(), 0);
  EXPECT_THROW(batch.slice(1, 5), Error);
}

TEST(Loader, HandsOverAWorkersExceptionInItsTurn) {
  const Counting data(40, 23);
  const StreamSampler sampler(40, 0);
  int64_t position = 0;
  while (sampler.at(position).index != 23) ++position;
  for (int64_t workers : {0, 1, 4}) {
    Loader loader(data, {.batch_size = 4, .workers = workers, .prefetch = 8});
    for (int64_t step = 0; step < position / 4; ++step) EXPECT_EQ(loader.next().size(), 4);
    EXPECT_THAT(message_of<DataError>([&] { loader.next(); }), HasSubstr("picture 23 is corrupt"));
    EXPECT_THAT(message_of<DataError>([&] { loader.next(); }), HasSubstr("picture 23 is corrupt"));
  }
}

TEST(Loader, RefusesEmptyDataAndUnevenBatches) {
  EXPECT_THAT(message_of<DataError>([] { Loader(Counting(0), {}); }), HasSubstr("the data set is empty: counting"));
  const Counting data(10);
  EXPECT_THROW(Loader(data, {.batch_size = 10, .world_size = 4}), Error);
  EXPECT_THAT(message_of<DataError>([&] { load_range(data, 5, 11, 0); }), HasSubstr("[5, 11) of a data set of 10"));
  EXPECT_EQ(ids_of(load_range(data, 5, 8, 0)), (std::vector<int64_t>{1005, 1006, 1007}));
}

TEST(Loader, LeavesTheTrainersThreadsAlone) {
  const int before = at::get_num_threads();
  at::set_num_threads(3);
  {
    const Counting data(10);
    Loader loader(data, {.batch_size = 2, .workers = 2});
    loader.next();
    EXPECT_EQ(at::get_num_threads(), 3);
    std::thread([] { EXPECT_EQ(at::get_num_threads(), 3); }).join();
  }
  at::set_num_threads(before);
}

TEST(Loader, StopsWhileWorkersAreBusy) {
  const Counting data(1000);
  for (int i = 0; i < 20; ++i) Loader(data, {.batch_size = 64, .workers = 3, .prefetch = 2});
}

TEST(Collate, NamesSamplesOfDifferentSizes) {
  std::vector<Sample> samples(2);
  samples[0].image = at::zeros({1, 2, 2}, at::kByte);
  samples[1].image = at::zeros({1, 2, 3}, at::kByte);
  samples[1].id = 77;
  EXPECT_THAT(message_of<DataError>([&] { collate(samples); }), HasSubstr("sample 77 is 1 x 2 x 3"));
}

}  // namespace
}  // namespace fewstep
