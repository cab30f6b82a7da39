// The shuffled order of an epoch, as a function of its key alone.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

namespace fewstep {

// Of 0 ... size - 1: by Fisher and Yates, each swap drawn by its own counter, keyed by (seed, Stream::data, epoch, id).
// Without `shuffle` the identity.
std::shared_ptr<const std::vector<int64_t>> permutation(int64_t size, uint64_t seed, int64_t epoch, int64_t id = 0,
                                                        bool shuffle = true);

}  // namespace fewstep
