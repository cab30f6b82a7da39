// Classifier-free guidance where all rows advance together: conditional rows, then as many unconditional ones. (A session has
// them in pairs, so that rows can be dropped.)
#pragma once
#include "src/decoding/image_model.h"

namespace fewstep::decoding {

// int64 [B, P] -> [B', P]: the prompts, followed by as many unconditional ones when guided.
Tensor with_unconditional(const ImageModel& model, const Tensor& prompts, bool guided);
// [B', ...] -> [B, ...]: u + s (c - u); unchanged at s = 1.
Tensor guide(const Tensor& logits, double guidance);
// codes int64 [B, L] -> [B', L, d], the same for both halves.
Tensor embed_codes(const ImageModel& model, const Tensor& codes, bool guided);

}  // namespace fewstep::decoding
