// Square cut-outs of a batch: what an encoder of patches is trained on.
#pragma once
#include <cstdint>

#include "src/tensor/tensor.h"

namespace fewstep {

// [B, C, H, W] -> [B, C, side, side], each at a place of its own, uniform over all that fit and a function of (seed, step, id) alone.
// ids: int64 [B]. ConfigError for a side above H or W.
Tensor random_crops(const Tensor& images, const Tensor& ids, int64_t side, uint64_t seed, int64_t step);

}  // namespace fewstep
