#include "eval/statistics.h"

#include "src/base/error.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::eval {

int64_t FeatureStatistics::dim() const { return mean_.defined() ? mean_.size(0) : 0; }

void FeatureStatistics::add(const Tensor& features) {
  const NoGrad no_grad;
  const auto [B, D] = dims<2>(features);
  if (B == 0) return;
  const Tensor x = features.detach().to(at::kCPU, at::kDouble);  // [B, D]
  const Tensor finite = at::isfinite(x).all(1);                  // [B]
  if (!finite.all().item<bool>())
    fail<NumericError>(
        "features: row {} of a batch (sample {} of the set) is not finite; the encoder or its input is broken",
        at::logical_not(finite).nonzero()[0].item<int64_t>(), count_);
  FeatureStatistics batch;
  batch.count_ = B;
  batch.mean_ = x.mean(0);
  // Centred by the batch's own mean before the products: sums of raw squares would cancel (E x^2 - (E x)^2).
  const Tensor centred = x - batch.mean_;
  batch.scatter_ = at::mm(centred.t(), centred);
  merge(batch);
}

void FeatureStatistics::merge(const FeatureStatistics& other) {
  if (other.count_ == 0) return;
  if (count_ == 0) {
    count_ = other.count_;
    mean_ = other.mean_.clone();
    scatter_ = other.scatter_.clone();
    return;
  }
  if (dim() != other.dim())
    fail("feature statistics: {} and {} dimensions do not merge; both sets need the same encoder", dim(), other.dim());
  const double a = static_cast<double>(count_), b = static_cast<double>(other.count_);
  const Tensor delta = other.mean_ - mean_;
  mean_ = mean_ + delta * (b / (a + b));
  scatter_ = scatter_ + other.scatter_ + at::outer(delta, delta) * (a * b / (a + b));
  count_ += other.count_;
}

void FeatureStatistics::reduce(dist::World& world) {
  if (world.size() == 1) return;
  // A rank without samples does not know D yet.
  Tensor d = at::full({1}, dim(), at::kLong);
  world.all_reduce_max(d);
  const int64_t D = d.item<int64_t>();
  if (D == 0) return;
  if (count_ > 0 && dim() != D) fail("feature statistics: {} dimensions here, {} on another rank", dim(), D);
  const auto f64 = at::TensorOptions().dtype(at::kDouble);
  const Tensor mine = at::cat({at::full({1}, static_cast<double>(count_), f64), count_ ? mean_ : at::zeros({D}, f64),
                               count_ ? scatter_.reshape({D * D}) : at::zeros({D * D}, f64)});
  FeatureStatistics all;
  for (const Tensor& part : world.all_gather(mine)) {
    FeatureStatistics one;
    one.count_ = static_cast<int64_t>(part[0].item<double>());
    one.mean_ = part.slice(0, 1, 1 + D).to(at::kCPU);
    one.scatter_ = part.slice(0, 1 + D).reshape({D, D}).to(at::kCPU);
    all.merge(one);
  }
  *this = all;
}

Tensor FeatureStatistics::covariance() const {
  if (count_ < 2) fail("covariance of {} samples: at least 2 are needed", count_);
  return scatter_ / static_cast<double>(count_ - 1);
}

FeatureStatistics FeatureStatistics::from_moments(const Tensor& mean, const Tensor& covariance, int64_t count) {
  FeatureStatistics s;
  s.count_ = std::max<int64_t>(count, 2);
  s.mean_ = mean.to(at::kDouble).clone();
  s.scatter_ = covariance.to(at::kDouble) * static_cast<double>(s.count_ - 1);
  return s;
}

void GroupedStatistics::add(const Tensor& features) {
  const int64_t B = features.size(0), G = groups();
  for (int64_t offset = 0; offset < std::min(B, G); ++offset) {
    const int64_t group = (seen_ + offset) % G;
    const Tensor rows = features.slice(0, offset, B, G);
    groups_[static_cast<size_t>(group)].add(rows.dim() == 3 ? rows.flatten(0, 1) : rows);
  }
  seen_ += B;
}

FeatureStatistics GroupedStatistics::all_but(int64_t left_out) const {
  FeatureStatistics sum;
  for (int64_t g = 0; g < groups(); ++g)
    if (g != left_out) sum.merge(groups_[static_cast<size_t>(g)]);
  return sum;
}

}  // namespace fewstep::eval
