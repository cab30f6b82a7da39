// Operators of transformer blocks with one pass forward and one backward on the CPU in float32, where PyTorch composes
// several; other devices and types use PyTorch's operators. First derivatives only: a gradient of a gradient through
// the fused form is refused with a clear error.
#pragma once
#include "src/tensor/tensor.h"

namespace fewstep::nn {

// weight * (x / sqrt(mean(x^2) + eps)) over the last dimension, numerically as transformers' LlamaRMSNorm: statistics
// in float32 at least, cast back, times weight.
Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps);
// x [B, H, L, D]; cos, sin [L, D] or [B, 1, L, D]: x cos + rotate_half(x) sin. Keeps x's memory layout.
Tensor rotary(const Tensor& x, const Tensor& cos, const Tensor& sin);
// silu(gate) * up
Tensor swiglu(const Tensor& gate, const Tensor& up);
// projected [..., 2 n] -> [..., n]: the first half times gelu (with erf) of the second, as diffusers' GEGLU.
Tensor geglu(const Tensor& projected);

}  // namespace fewstep::nn
