#include "eval/inception_score.h"

#include "eval/numpy_random.h"
#include "src/base/error.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::eval {

MeanStd inception_score(const Tensor& logits, int64_t splits, bool shuffle, uint32_t seed) {
  const NoGrad no_grad;
  const int64_t N = dims<2>(logits)[0];
  if (splits < 1 || N < splits) fail<ConfigError>("inception score: {} images do not make {} splits", N, splits);
  Tensor x = logits.to(at::kCPU, at::kDouble);
  if (!at::isfinite(x).all().item<bool>()) fail<NumericError>("inception score: logits that are not finite");
  if (shuffle) x = x.index_select(0, at::tensor(NumpyRandom(seed).permutation(N), at::kLong));
  const Tensor p = at::softmax(x, 1), log_p = at::log_softmax(x, 1);
  std::vector<double> scores;
  for (int64_t i = 0; i < splits; ++i) {
    const int64_t begin = i * N / splits, end = (i + 1) * N / splits;
    const Tensor part = p.slice(0, begin, end), mean = part.mean(0, /*keepdim=*/true);
    scores.push_back((part * (log_p.slice(0, begin, end) - mean.log())).sum(1).mean().exp().item<double>());
  }
  return mean_and_std(scores);
}

}  // namespace fewstep::eval
