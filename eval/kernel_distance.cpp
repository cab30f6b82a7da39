#include "eval/kernel_distance.h"

#include "src/base/error.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::eval {
namespace {

// Sum of k over all pairs of rows; `self` leaves out the diagonal.
double kernel_sum(const Tensor& a, const Tensor& b, bool self, int64_t block) {
  const double D = static_cast<double>(a.size(1));
  double sum = 0;
  for (int64_t i = 0; i < a.size(0); i += block) {
    const Tensor x = a.slice(0, i, std::min(i + block, a.size(0)));
    sum += at::pow(at::mm(x, b.t()) / D + 1.0, 3).sum().item<double>();
    if (self) sum -= at::pow(at::square(x).sum(1) / D + 1.0, 3).sum().item<double>();
  }
  return sum;
}

}  // namespace

double kernel_distance(const Tensor& a, const Tensor& b, int64_t block) {
  const NoGrad no_grad;
  const auto [N, D] = dims<2>(a);
  const auto [M, Db] = dims<2>(b);
  if (D != Db) fail<ConfigError>("kernel distance: {} features against {}; both need the same encoder", D, Db);
  if (N < 2 || M < 2) fail<ConfigError>("kernel distance of {} and {} samples: at least 2 of each are needed", N, M);
  const Tensor x = a.to(at::kCPU, at::kDouble), y = b.to(at::kCPU, at::kDouble);
  const double n = static_cast<double>(N), m = static_cast<double>(M);
  const double distance = kernel_sum(x, x, true, block) / (n * (n - 1)) +
                          kernel_sum(y, y, true, block) / (m * (m - 1)) - 2 * kernel_sum(x, y, false, block) / (n * m);
  if (!std::isfinite(distance)) fail<NumericError>("kernel distance: {}", distance);
  return distance;
}

}  // namespace fewstep::eval
