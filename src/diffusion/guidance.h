// Classifier-free guidance (Ho & Salimans 2022).
#pragma once
#include "src/tensor/fwd.h"

namespace fewstep::diffusion {

// unconditional + scale (conditional - unconditional): 1 is the conditional model, 0 the unconditional one. rescale in [0, 1]
// blends in the same prediction brought to the conditional one's standard deviation per sample (Lin et al. 2024, eq. 15-16).
// All [B, ...].
Tensor guide(const Tensor& conditional, const Tensor& unconditional, double scale, double rescale = 0.0);

}  // namespace fewstep::diffusion
