// Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020) on features.
#pragma once
#include <cstdint>

#include "src/tensor/fwd.h"

namespace fewstep::eval {

struct Prdc {
  double precision = 0;  // share of samples inside the union of real balls
  double recall = 0;     // share of real features inside the union of sample balls
  double density = 0, coverage = 0;
};
// real [N, D], samples [M, D]; a ball reaches to the k-th nearest neighbour in its own set (itself not counted), border
// included. Distances are computed in blocks: memory is block x max(N, M), whatever N and M are.
Prdc prdc(const Tensor& real, const Tensor& samples, int64_t k = 3, int64_t block = 1024);

// Radius of each feature's ball: distance to its k-th nearest other feature. float32 [N].
Tensor knn_radii(const Tensor& features, int64_t k, int64_t block = 1024);

}  // namespace fewstep::eval
