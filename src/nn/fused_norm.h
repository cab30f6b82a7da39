// GroupNorm and SiLU of residual blocks with one pass forward and two backward on the CPU in float32; other devices and
// types use PyTorch's operators. First derivatives only, as src/nn/fused.h.
#pragma once
#include "src/nn/layers.h"

namespace fewstep::nn {

// silu(norm(x + shift)); x [B, C, ...], shift [B, C] or undefined. Nothing but x is kept for backward.
Tensor group_norm_silu(const GroupNorm& norm, const Tensor& x, const Tensor& shift = {});

}  // namespace fewstep::nn
