// A loop over independent items in several threads.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>

namespace fewstep {

// work(i) for i = 0 ... count - 1, in about that order, in `threads` threads (0: one a core), the calling one among them.
// An exception ends the loop early and is thrown again when all threads have stopped.
void parallel_for(size_t count, int64_t threads, const std::function<void(size_t)>& work);

}  // namespace fewstep
