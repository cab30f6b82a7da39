// Kernel distance (KID's estimator, Binkowski et al. 2018) on any encoder's features.
#pragma once
#include <cstdint>

#include "src/tensor/fwd.h"

namespace fewstep::eval {

// Unbiased MMD^2 with k(x, y) = (x.y / D + 1)^3 over all N and M features (the full U-statistic): deterministic, and of
// lower variance than the usual mean over 100 random subsets. Expectation 0 for equal distributions, may be negative.
double kernel_distance(const Tensor& a, const Tensor& b, int64_t block = 1024);

}  // namespace fewstep::eval
