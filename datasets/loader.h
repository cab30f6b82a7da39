// The stateless sampler and the threaded loader.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "datasets/dataset.h"

namespace fewstep {

// Position p of the endless stream is element p % N of the permutation of epoch p / N, keyed by (seed, epoch). Global
// step s of batch G takes positions [s G, (s + 1) G); rank r of W takes the r-th W-th of them. Hence the same stream
// for any W and after resume.
class StreamSampler {
 public:
  StreamSampler(int64_t dataset_size, uint64_t seed, bool shuffle = true);
  struct Place {
    int64_t index, epoch;
  };
  Place at(int64_t position) const;  // O(1) amortised: keeps the last two epochs' permutations; thread-safe

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

class Loader {
 public:
  Loader(const Dataset& dataset, const LoaderOptions& options);  // DataError: empty data set
  ~Loader();
  Batch next();                 // this rank's share of the next global step; rethrows a worker's exception
  double wait_seconds() const;  // time next() has spent waiting so far
 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Samples [begin, end) in order as one batch (validation, evaluation).
Batch load_range(const Dataset& dataset, int64_t begin, int64_t end, uint64_t seed);

}  // namespace fewstep
