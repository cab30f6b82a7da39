#include "datasets/bucket_sampler.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <mutex>
#include <numeric>

#include "datasets/permutation.h"
#include "src/base/error.h"
#include "src/base/log.h"

namespace fewstep {

struct BucketSampler::Block {
  int64_t bucket = 0, number = 0;  // the number-th block of G positions of the bucket's stream
};

struct BucketSampler::Cache {
  struct Plan {
    int64_t epoch = -1;
    std::shared_ptr<const std::vector<Block>> blocks;
  };
  struct Order {
    int64_t epoch = -1;
    std::shared_ptr<const std::vector<int64_t>> permutation;
  };
  std::mutex mutex;
  Plan plans[2];                                // by epoch % 2: workers at an epoch's end need this one and the next
  std::vector<std::array<Order, 2>> of_bucket;  // the same for each bucket's own epochs
};

BucketSampler::BucketSampler(std::vector<std::vector<int64_t>> members, int64_t batch, uint64_t seed, bool shuffle)
    : members_(std::move(members)), batch_(batch), seed_(seed), shuffle_(shuffle), cache_(std::make_shared<Cache>()) {
  FEW_CHECK(batch > 0, "a bucketed batch of {}", batch);
  for (size_t b = 0; b < members_.size(); ++b) {
    const auto n = static_cast<int64_t>(members_[b].size());
    FEW_CHECK(n == 0 || n >= batch, "bucket {} has {} images for a batch of {}", b, n, batch);
    total_ += n;
  }
  FEW_CHECK(total_ > 0, "{} buckets without images", members_.size());
  cache_->of_bucket.resize(members_.size());
}

int64_t BucketSampler::steps_before(int64_t epoch) const {
  int64_t steps = 0;
  for (const auto& bucket : members_) steps += epoch * static_cast<int64_t>(bucket.size()) / batch_;
  return steps;
}

int64_t BucketSampler::epoch_of(int64_t step) const {
  FEW_CHECK(step >= 0, "step {}", step);
  // sum_b floor(e n_b / G) <= e N / G: not after the epoch, and as every n_b >= G at most a few before it.
  int64_t epoch = step * batch_ / total_;
  while (steps_before(epoch + 1) <= step) ++epoch;
  return epoch;
}

BucketSampler::Block BucketSampler::block_of(int64_t step) const {
  const int64_t epoch = epoch_of(step);
  const auto offset = static_cast<size_t>(step - steps_before(epoch));
  std::lock_guard lock(cache_->mutex);
  Cache::Plan& plan = cache_->plans[epoch % 2];
  if (plan.epoch != epoch) {
    std::vector<Block> all;
    for (size_t b = 0; b < members_.size(); ++b) {
      const auto n = static_cast<int64_t>(members_[b].size());
      for (int64_t k = epoch * n / batch_; k < (epoch + 1) * n / batch_; ++k) all.push_back({static_cast<int64_t>(b), k});
    }
    auto blocks = std::make_shared<std::vector<Block>>(all.size());
    // Keyed apart from every bucket's own permutation, which have ids from 1 on, and from the plain stream's 0.
    const auto order = permutation(static_cast<int64_t>(all.size()), seed_, epoch, -1, shuffle_);
    for (size_t i = 0; i < all.size(); ++i) (*blocks)[i] = all[static_cast<size_t>((*order)[i])];
    plan = {epoch, blocks};
  }
  return (*plan.blocks)[offset];
}

SamplePlace BucketSampler::at(int64_t step, int64_t slot) const {
  FEW_CHECK(slot >= 0 && slot < batch_, "slot {} of a batch of {}", slot, batch_);
  const Block block = block_of(step);
  const auto bucket = static_cast<size_t>(block.bucket);
  const std::vector<int64_t>& members = members_[bucket];
  const auto n = static_cast<int64_t>(members.size());
  const int64_t position = block.number * batch_ + slot, epoch = position / n;
  std::lock_guard lock(cache_->mutex);
  Cache::Order& order = cache_->of_bucket[bucket][static_cast<size_t>(epoch % 2)];
  if (order.epoch != epoch) order = {epoch, permutation(n, seed_, epoch, block.bucket + 1, shuffle_)};
  const auto place = static_cast<size_t>((*order.permutation)[static_cast<size_t>(position % n)]);
  return {members[place], epoch, block.bucket};
}

// --- small buckets ---

namespace {

using BucketMembers = std::vector<std::vector<int64_t>>;

int64_t count_of(const std::vector<int64_t>& bucket) { return static_cast<int64_t>(bucket.size()); }

std::vector<size_t> small_ones(const BucketMembers& members, int64_t batch) {
  std::vector<size_t> small;
  for (size_t b = 0; b < members.size(); ++b)
    if (!members[b].empty() && count_of(members[b]) < batch) small.push_back(b);
  return small;
}

std::string small_text(const BucketMembers& members, const std::vector<BucketSize>& sizes, const std::vector<size_t>& small) {
  constexpr size_t kNamed = 8;
  std::vector<std::string> names;
  for (size_t i = 0; i < std::min(small.size(), kNamed); ++i)
    names.push_back(fmt::format("{} has {}", bucket_text(sizes[small[i]]), members[small[i]].size()));
  if (small.size() > kNamed) names.push_back(fmt::format("{} more", small.size() - kNamed));
  return fmt::format("{}", fmt::join(names, ", "));
}

// The smallest first, into the bucket with images whose aspect is nearest; until none is small or one is left.
void merge_small(BucketMembers& members, const std::vector<BucketSize>& sizes, int64_t batch) {
  for (std::vector<size_t> small = small_ones(members, batch); !small.empty(); small = small_ones(members, batch)) {
    const size_t from = *std::min_element(small.begin(), small.end(),
                                          [&](size_t a, size_t b) { return members[a].size() < members[b].size(); });
    size_t into = from;
    for (size_t b = 0; b < members.size(); ++b)
      if (b != from && !members[b].empty() &&
          (into == from || aspect_distance(sizes[from], sizes[b]) < aspect_distance(sizes[from], sizes[into])))
        into = b;
    if (into == from) return;
    log::info("bucket {}: {} images, fewer than a batch of {}, go to bucket {}", bucket_text(sizes[from]), members[from].size(),
              batch, bucket_text(sizes[into]));
    members[into].insert(members[into].end(), members[from].begin(), members[from].end());
    std::sort(members[into].begin(), members[into].end());
    members[from].clear();
  }
}

}  // namespace

std::vector<std::vector<int64_t>> group_by_bucket(const Dataset& data, int64_t batch) {
  const std::vector<BucketSize> sizes = data.buckets();
  BucketMembers members(sizes.size());
  for (int64_t i = 0; i < data.size(); ++i) {
    const int64_t b = data.bucket_of(i);
    FEW_CHECK(b >= 0 && b < static_cast<int64_t>(sizes.size()), "{}: sample {} in bucket {} of {}", data.description(), i, b,
              sizes.size());
    members[static_cast<size_t>(b)].push_back(i);
  }
  const std::vector<size_t> small = small_ones(members, batch);
  if (small.empty()) return members;
  const std::string counts = small_text(members, sizes, small);
  if (data.size() < batch)
    fail<ConfigError>("{}: {} images for a global batch of {}: lower loop.batch_size", data.description(), data.size(), batch);
  switch (data.small_buckets()) {
    case SmallBuckets::error:
      fail<ConfigError>("{}: {} of {} buckets have fewer images than a global batch of {}: {} (lower loop.batch_size, or set "
                        "data.buckets.small_buckets: merge to give them to the nearest aspect, drop to leave them out, or use "
                        "fewer buckets)",
                        data.description(), small.size(), sizes.size(), batch, counts);
    case SmallBuckets::merge:
      if (!data.can_reframe())
        fail<ConfigError>("{}: buckets have fewer images than a global batch of {} ({}), and what is stored cannot be framed "
                          "for another bucket: lower loop.batch_size, set small_buckets: drop, or make the cache anew from "
                          "fewer buckets",
                          data.description(), batch, counts);
      merge_small(members, sizes, batch);
      break;
    case SmallBuckets::drop: {
      int64_t dropped = 0;
      for (size_t b : small) dropped += count_of(members[b]), members[b].clear();
      if (dropped == data.size())
        fail<ConfigError>("{}: every bucket has fewer images than a global batch of {}: {} (lower loop.batch_size, or set "
                          "data.buckets.small_buckets: merge)",
                          data.description(), batch, counts);
      log::warn("{}: {} images of {} buckets with fewer than a global batch of {} are left out: {}", data.description(), dropped,
                small.size(), batch, counts);
    }
  }
  return members;
}

}  // namespace fewstep
