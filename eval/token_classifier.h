// Tells two sets of token grids apart: do two decoders draw from the same law? A small convolutional network is trained
// on one half of the captions and judged on the other, so that nothing it learnt by heart counts.
#pragma once
#include <cstdint>
#include <vector>

#include "eval/metric.h"
#include "src/tensor/tensor.h"

namespace fewstep::eval {

struct TokenGrid {
  int64_t codes = 0;  // K: tokens are in [0, K)
  int64_t rows = 0, columns = 0;
  Tensor table =
      {};  // [K, d], optional: vectors of the codes (the model's embeddings). What is alike in them starts alike
};
struct TokenClassifierOptions {
  int64_t steps = 300, pairs = 32;  // of training; grids of so many captions a step, of both sets
  uint64_t seed = 0;
};

// Area under the ROC curve on the held-out half: 0.5 when nothing was learnt, 1 when every grid is told apart. a, b:
// int64 [N, rows * columns] in raster order, row i of both drawn for the same caption; N >= 8. Same input, same answer.
Value token_auc(const Tensor& a, const Tensor& b, const TokenGrid& grid, const TokenClassifierOptions& options = {});

// Area under the ROC curve (ties count half) with DeLong's interval in its form for clustered data (Obuchowski 1997,
// Biometrics 53): positive i and negative i share a caption.
Value paired_auc(const std::vector<double>& positives, const std::vector<double>& negatives);

}  // namespace fewstep::eval
