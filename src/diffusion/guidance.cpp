#include "src/diffusion/guidance.h"

#include "src/base/error.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::diffusion {

static Tensor deviation_per_sample(const Tensor& x) { return append_dims(x.flatten(1).std(1), x.dim()); }

Tensor guide(const Tensor& conditional, const Tensor& unconditional, double scale, double rescale) {
  FEW_CHECK(conditional.sizes() == unconditional.sizes(), "guidance between {} and {} values", conditional.numel(), unconditional.numel());
  Tensor guided = scale == 1.0 ? conditional : unconditional + scale * (conditional - unconditional);
  if (rescale == 0.0 || scale == 1.0) return guided;
  return guided * (rescale * deviation_per_sample(conditional) / deviation_per_sample(guided) + (1.0 - rescale));
}

}  // namespace fewstep::diffusion
