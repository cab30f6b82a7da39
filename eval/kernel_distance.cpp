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

MeanStd kid_subsets(const Tensor& a, const Tensor& b, int64_t subsets, int64_t size, uint32_t seed) {
  const NoGrad no_grad;
  const int64_t N = dims<2>(a)[0], M = dims<2>(b)[0];
  if (subsets < 1 || size < 2) fail<ConfigError>("KID: {} subsets of {} images", subsets, size);
  if (N < size || M < size)
    fail<ConfigError>(
        "KID: subsets of {} images from sets of {} and {}; choose a smaller subset, or the estimate over all images",
        size, N, M);
  NumpyRandom random(seed);
  const auto draw = [&](const Tensor& x) {
    std::vector<int64_t> order = random.permutation(x.size(0));
    order.resize(static_cast<size_t>(size));
    return x.index_select(0, at::tensor(order, at::kLong));
  };
  std::vector<double> values;
  for (int64_t i = 0; i < subsets; ++i) {
    const Tensor x = draw(a), y = draw(b);  // in this order: the two draws share one stream
    values.push_back(kernel_distance(x, y));
  }
  return mean_and_std(values);
}

namespace {
double gaussian_mean(const Tensor& a, const Tensor& b, int64_t block) {
  constexpr double kSigma = 10, kGamma = 1 / (2 * kSigma * kSigma);
  double sum = 0;
  const Tensor b_squares = b.square().sum(1);
  for (int64_t i = 0; i < a.size(0); i += block) {
    const Tensor x = a.slice(0, i, std::min(i + block, a.size(0)));
    const Tensor distance = x.square().sum(1).unsqueeze(1) + b_squares - 2 * at::mm(x, b.t());
    sum += at::exp(-kGamma * distance.clamp_min(0)).sum().item<double>();
  }
  return sum / (static_cast<double>(a.size(0)) * static_cast<double>(b.size(0)));
}
}  // namespace

double cmmd(const Tensor& a, const Tensor& b, int64_t block) {
  const NoGrad no_grad;
  const auto [N, D] = dims<2>(a);
  const auto [M, Db] = dims<2>(b);
  if (D != Db) fail<ConfigError>("CMMD: {} features against {}; both need the same encoder", D, Db);
  if (N < 1 || M < 1) fail<ConfigError>("CMMD of {} and {} samples", N, M);
  const Tensor x = a.to(at::kCPU, at::kDouble), y = b.to(at::kCPU, at::kDouble);
  const double value =
      1000 * (gaussian_mean(x, x, block) + gaussian_mean(y, y, block) - 2 * gaussian_mean(x, y, block));
  if (!std::isfinite(value)) fail<NumericError>("CMMD: {}", value);
  return value;
}

}  // namespace fewstep::eval
