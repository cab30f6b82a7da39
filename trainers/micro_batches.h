// Gradient accumulation: the local batch in equal parts, the last one marked.
#pragma once
#include "datasets/dataset.h"

namespace fewstep {

// f(micro-batch, is_last) for each of `accumulate` parts.
template <class F>
void for_micro_batches(const Batch& batch, int64_t accumulate, F&& f) {
  const int64_t size = batch.size() / accumulate;
  for (int64_t i = 0; i < accumulate; ++i) f(batch.slice(i * size, (i + 1) * size), i + 1 == accumulate);
}

}  // namespace fewstep
