// Inception score (Salimans et al. 2016, arXiv 1606.03498): exp of the mean KL divergence between p(y|x) and its mean.
#pragma once
#include <cstdint>

#include "eval/numpy_random.h"
#include "src/tensor/fwd.h"

namespace fewstep::eval {

// Mean and deviation over the splits. logits [N, K] of the InceptionV3 of FID without the bias of fc. Softmax in
// float64. With `shuffle` in numpy's order for that seed (torch-fidelity: 2020), else as they are. ConfigError when
// there are fewer rows than splits.
MeanStd inception_score(const Tensor& logits, int64_t splits = 10, bool shuffle = true, uint32_t seed = 2020);

}  // namespace fewstep::eval
