#include "eval/prdc.h"

#include "src/base/error.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::eval {
namespace {

// [B, M] Euclidean. The direct form, not |a|^2 + |b|^2 - 2ab: that one loses a neighbour's distance to rounding.
Tensor distances(const Tensor& a, const Tensor& b) { return at::_cdist_forward(a, b, 2.0, /*compute_mode=*/2); }

}  // namespace

Tensor knn_radii(const Tensor& features, int64_t k, int64_t block) {
  const int64_t N = dims<2>(features)[0];
  if (N <= k) fail<ConfigError>("{} features are too few for their {} nearest neighbours; raise num_samples", N, k);
  std::vector<Tensor> radii;
  for (int64_t i = 0; i < N; i += block)  // the nearest is the feature itself, so the (k+1)-th smallest
    radii.push_back(
        std::get<0>(at::kthvalue(distances(features.slice(0, i, std::min(i + block, N)), features), k + 1, 1)));
  return at::cat(radii);
}

Prdc prdc(const Tensor& real, const Tensor& samples, int64_t k, int64_t block) {
  const NoGrad no_grad;
  const Tensor r = real.to(at::kCPU, at::kFloat).contiguous(), s = samples.to(at::kCPU, at::kFloat).contiguous();
  if (!at::isfinite(r).all().item<bool>() || !at::isfinite(s).all().item<bool>())
    fail<NumericError>("precision/recall: features that are not finite");
  const auto [N, D] = dims<2>(r);
  const auto [M, Ds] = dims<2>(s);
  if (D != Ds) fail<ConfigError>("precision/recall: {} real features against {}; both need the same encoder", D, Ds);
  const Tensor r_radius = knn_radii(r, k, block), s_radius = knn_radii(s, k, block);  // [N], [M]
  Tensor in_real_balls = at::zeros({M}, at::kLong);  // how many real balls hold sample j
  int64_t recalled = 0, covered = 0;
  for (int64_t i = 0; i < N; i += block) {
    const int64_t end = std::min(i + block, N);
    const Tensor d = distances(r.slice(0, i, end), s);  // [B, M]
    const Tensor inside = d <= r_radius.slice(0, i, end).unsqueeze(1);
    in_real_balls += inside.sum(0);
    covered += inside.any(1).sum().item<int64_t>();
    recalled += (d <= s_radius.unsqueeze(0)).any(1).sum().item<int64_t>();
  }
  const double n = static_cast<double>(N), m = static_cast<double>(M);
  return {.precision = static_cast<double>(in_real_balls.gt(0).sum().item<int64_t>()) / m,
          .recall = static_cast<double>(recalled) / n,
          .density = static_cast<double>(in_real_balls.sum().item<int64_t>()) / (static_cast<double>(k) * m),
          .coverage = static_cast<double>(covered) / n};
}

}  // namespace fewstep::eval
