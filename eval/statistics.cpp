#include "eval/statistics.h"

#include "src/base/error.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::eval {

int64_t FeatureStatistics::dim() const { return mean_.defined() ? mean_.size(0) : 0; }

namespace {
// `first`: the number of the batch's first sample in the set.
void check_finite(const Tensor& x, int64_t first) {
  const Tensor finite = at::isfinite(x).all(1);  // [B]
  if (finite.all().item<bool>()) return;
  const int64_t row = at::logical_not(finite).nonzero()[0].item<int64_t>();
  fail<NumericError>(
      "features: row {} of a batch (sample {} of the set) is not finite; the encoder or its input is broken", row,
      first + row);
}
}  // namespace

void FeatureStatistics::add(const Tensor& features) {
  const NoGrad no_grad;
  const auto [B, D] = dims<2>(features);
  if (B == 0) return;
  const Tensor x = features.detach().to(at::kCPU, at::kDouble);  // [B, D]
  check_finite(x, count_);
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
  if (count_ == 0) {  // tensors are never changed in place: objects may share them
    *this = other;
    return;
  }
  if (dim() != other.dim())
    fail("feature statistics: {} and {} dimensions do not merge; both sets need the same encoder", dim(), other.dim());
  const double a = static_cast<double>(count_), b = static_cast<double>(other.count_);
  const Tensor delta = other.mean_ - mean_;
  mean_ = mean_ + delta * (b / (a + b));
  scatter_ = (scatter_ + other.scatter_).addr_(delta, delta, 1, a * b / (a + b));
  count_ += other.count_, counted_ = counted_ && other.counted_;
}

void FeatureStatistics::remove(const FeatureStatistics& part) {
  if (part.count_ == 0) return;
  if (part.count_ >= count_ || dim() != part.dim())
    fail("feature statistics: {} samples of {} dimensions cannot be taken from {} of {}", part.count_, part.dim(),
         count_, dim());
  const double all = static_cast<double>(count_), b = static_cast<double>(part.count_), a = all - b;
  const Tensor delta = (part.mean_ - mean_) * (all / a);  // of the two parts' means
  mean_ = mean_ - delta * (b / all);
  scatter_ = (scatter_ - part.scatter_).addr_(delta, delta, 1, -a * b / all);
  count_ -= part.count_;
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

int64_t FeatureStatistics::rank_limit() const {
  return counted_ ? std::max<int64_t>(0, std::min(count_ - 1, dim())) : dim();
}

FeatureStatistics FeatureStatistics::from_moments(const Tensor& mean, const Tensor& covariance, int64_t count) {
  FeatureStatistics s;
  s.counted_ = count > 0;
  s.count_ = std::max<int64_t>(count, 2);
  s.mean_ = mean.to(at::kDouble).clone();
  s.scatter_ = covariance.to(at::kDouble) * static_cast<double>(s.count_ - 1);
  return s;
}

void GroupedStatistics::add(const Tensor& features) {
  const NoGrad no_grad;
  const int64_t B = features.size(0);
  if (features.numel() == 0) return;
  const Tensor x = (features.dim() == 3 ? features.flatten(0, 1) : features).detach().to(at::kCPU);
  const auto [R, D] = dims<2>(x);
  if (!parts_.empty() && D != dim())
    fail("feature statistics: {} and {} dimensions do not merge; both sets need the same encoder", dim(), D);
  check_finite(x, rows_);
  parts_.push_back(x);
  sample_of_.push_back(at::arange(seen_, seen_ + B).repeat_interleave(R / B));
  seen_ += B, rows_ += R;
}

Tensor GroupedStatistics::rows() const {
  if (parts_.size() > 1) parts_ = {at::cat(parts_)};
  return parts_.empty() ? Tensor() : parts_[0];
}

Tensor GroupedStatistics::groups_of_rows() const { return at::cat(sample_of_).remainder(groups_); }

FeatureStatistics GroupedStatistics::total() const {
  constexpr int64_t kBlock = 2048;  // rows in float64 at a time
  const Tensor x = rows();
  while (total_.count() < rows_) total_.add(x.narrow(0, total_.count(), std::min(kBlock, rows_ - total_.count())));
  return total_;
}

FeatureStatistics GroupedStatistics::all_but(int64_t group) const {
  FeatureStatistics rest = total(), part;
  if (group < 0 || group >= seen_) return rest;
  part.add(rows().index_select(0, groups_of_rows().eq(group).nonzero().squeeze(1)));
  if (part.count() == rows_) return {};
  rest.remove(part);
  return rest;
}

}  // namespace fewstep::eval
