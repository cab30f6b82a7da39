// Batches of one bucket each, without state: where in the data set sample `slot` of global step `step` is.
//
// Bucket b with n_b images has an endless stream: position p is element p % n_b of the permutation of ITS epoch p / n_b,
// keyed by (seed, epoch, b). The stream is cut into blocks of the global batch G. Epoch e of the run holds the blocks
// that are complete by its end, floor(e n_b / G) <= k < floor((e + 1) n_b / G), of all buckets in one shuffled order
// keyed by (seed, e). Hence:
//   - what is left of a bucket at an epoch's end (fewer than G images) begins its first block of the next epoch;
//   - after E epochs an image has been seen E times, or E - 1 times if it is among the (E n_b) mod G carried ones;
//     exactly E times where G divides n_b;
//   - before epoch e lie sum_b floor(e n_b / G) steps: any step is found without replay;
//   - nothing depends on ranks or workers: rank r of W takes the slots r, r + W, ... of every block.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "datasets/dataset.h"

namespace fewstep {

// Where one sample of a batch comes from: `epoch` of its own stream, `bucket` whose size the batch has.
struct SamplePlace {
  int64_t index = 0, epoch = 0, bucket = 0;
};

class BucketSampler {
 public:
  // members[b]: indices of the samples of bucket b, at least `batch` of them or none.
  BucketSampler(std::vector<std::vector<int64_t>> members, int64_t batch, uint64_t seed, bool shuffle = true);
  SamplePlace at(int64_t step, int64_t slot) const;  // thread-safe; O(1) amortised over an epoch
  int64_t epoch_of(int64_t step) const;
  int64_t steps_before(int64_t epoch) const;  // complete epochs 0 ... epoch - 1

 private:
  struct Cache;
  struct Block;
  Block block_of(int64_t step) const;
  std::vector<std::vector<int64_t>> members_;
  int64_t batch_, total_ = 0;
  uint64_t seed_;
  bool shuffle_;
  std::shared_ptr<Cache> cache_;
};

// Indices by bucket, with the data set's policy on buckets smaller than `batch`: ConfigError that names bucket, images,
// batch and what to do; merged (the smallest first, into the nearest aspect that has images) or dropped, with a
// warning in the log.
std::vector<std::vector<int64_t>> group_by_bucket(const Dataset& data, int64_t batch);

}  // namespace fewstep
