// Kernel distance (KID's estimator, Binkowski et al. 2018) on any encoder's features.
#pragma once
#include <cstdint>

#include "eval/numpy_random.h"
#include "src/tensor/fwd.h"

namespace fewstep::eval {

// Unbiased MMD^2 with k(x, y) = (x.y / D + 1)^3 over all N and M features (the full U-statistic): deterministic, and of
// lower variance than the usual mean over 100 random subsets. Expectation 0 for equal distributions, may be negative.
double kernel_distance(const Tensor& a, const Tensor& b, int64_t block = 1024);

// KID as most tools print it: mean and deviation (of the population) of the same estimator on random subsets of both
// sets, drawn in numpy's order for that seed (torch-fidelity: 2020). ConfigError when a set is smaller than a subset.
MeanStd kid_subsets(const Tensor& a, const Tensor& b, int64_t subsets = 100, int64_t size = 1000, uint32_t seed = 2020);

// CMMD (Jayasumana et al. 2024, arXiv 2401.09603): 1000 x the biased MMD^2 (diagonals included) with k = exp(-|x - y|^2
// / (2 sigma^2)), sigma 10, of CLIP embeddings of unit length. In blocks: no N x N matrix is kept.
double cmmd(const Tensor& a, const Tensor& b, int64_t block = 1024);

}  // namespace fewstep::eval
