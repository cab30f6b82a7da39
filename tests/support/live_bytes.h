// The most memory that tensors of the CPU held at once while a call ran.
#pragma once
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "src/tensor/tensor.h"

namespace fewstep::testing {

// Counts live bytes of CPU tensors of this thread (autograd runs CPU graphs in the thread that asks).
struct LiveBytes : c10::MemoryReportingInfoBase {
  void reportMemoryUsage(void*, int64_t bytes, size_t, size_t, c10::Device) override {
    live += bytes;
    peak = std::max(peak, live);
  }
  bool memoryProfilingEnabled() const override { return true; }
  int64_t live = 0, peak = 0;
};

// What `run` returns, and the peak beyond what was there before.
template <class F>
std::pair<std::vector<Tensor>, int64_t> with_peak(F run) {
  auto counter = std::make_shared<LiveBytes>();
  const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, counter);
  std::vector<Tensor> out = run();
  return {std::move(out), counter->peak};
}

}  // namespace fewstep::testing
