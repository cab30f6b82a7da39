// The stateless sampler and the threaded loader.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "datasets/bucket_sampler.h"
#include "datasets/dataset.h"

namespace fewstep {

// Position p of the endless stream is element p % N of the permutation of epoch p / N, keyed by (seed, epoch). Global
// step s of batch G takes positions [s G, (s + 1) G); rank r of W takes the r-th W-th of them. Hence the same stream
// for any W and after resume.
class StreamSampler {
 public:
  StreamSampler(int64_t dataset_size, uint64_t seed, bool shuffle = true);
  SamplePlace at(int64_t position) const;  // O(1) amortised: keeps the last two epochs' permutations; thread-safe

 private:
  struct Cache;
  int64_t size_;
  uint64_t seed_;
  bool shuffle_;
  std::shared_ptr<Cache> cache_;
};

struct LoaderOptions {
  int64_t batch_size = 64;  // global
  int rank = 0, world_size = 1;
  uint64_t seed = 0;
  int64_t first_step = 0;
  int64_t workers = 1;   // 0: in the calling thread
  int64_t prefetch = 4;  // batches ahead
  bool shuffle = true;
};

// Samples one after another by StreamSampler, or where the data set has several buckets batches of one bucket each by
// BucketSampler. The same batches for any number of workers.
class Loader {
 public:
  // DataError: empty data set. ConfigError: buckets that are smaller than a batch (group_by_bucket).
  Loader(const Dataset& dataset, const LoaderOptions& options);
  ~Loader();
  Batch next();                 // this rank's share of the next global step; rethrows a worker's exception
  double wait_seconds() const;  // time next() has spent waiting so far
  int64_t epoch_of(int64_t step) const;  // 0-based: complete passes before global step `step`
 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Samples [begin, end) in order as one batch (evaluation). DataError when they have different sizes.
Batch load_range(const Dataset& dataset, int64_t begin, int64_t end, uint64_t seed);
Batch load_indices(const Dataset& dataset, std::span<const int64_t> indices, uint64_t seed);

// The first `count` samples of a validation split in global batches of one bucket each: every batch holds at most
// `micro` samples a rank and the same number on every rank, so up to ranks - 1 samples of a bucket are left over.
// Rank r's share of a batch is the r-th of `ranks` consecutive parts.
std::vector<std::vector<int64_t>> validation_batches(const Dataset& dataset, int64_t count, int64_t micro, int64_t ranks);

}  // namespace fewstep
