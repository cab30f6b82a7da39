// Attention on scaled_dot_product_attention, and rotary position embedding in the Llama ("rotate half") form.
#pragma once
#include <cstdint>

#include "src/tensor/tensor.h"

namespace fewstep::nn {

// q [B, Hq, Lq, D], k and v [B, Hkv, Lk, D] with Hq a multiple of Hkv. `mask`: bool [B|1, 1|Hq, Lq, Lk], true = attend,
// or undefined. `causal` needs Lq == Lk (offsets are given as a mask). Returns [B, Hq, Lq, D].
Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& mask = {}, bool causal = false);

struct RotaryTable {
  Tensor cos, sin;  // [positions, head_dim], float32
};
RotaryTable rotary_table(int64_t positions, int64_t head_dim, double theta);
// x [B, H, L, D]; cos, sin [L, D] or [B, 1, L, D]: x cos + rotate_half(x) sin.
Tensor apply_rotary(const Tensor& x, const Tensor& cos, const Tensor& sin);

}  // namespace fewstep::nn
