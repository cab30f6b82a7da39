#include "eval/frechet.h"

#include "src/base/error.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::eval {
namespace {

// Negative eigenvalues beyond this part of the trace are no rounding: the matrix is not a covariance.
constexpr double kClipTolerance = 1e-6;
// So much of the trace beyond the largest possible rank is rounding; more says that the number of samples is wrong.
constexpr double kRankTolerance = 1e-9;

struct Clipped {
  Tensor values;        // [rank] >= 0, rising
  int64_t dropped = 0;  // the smallest ones, beyond the rank
  double relative = 0;  // of the trace
};

// Of a positive semi-definite matrix [n, n] that has at most `rank` eigenvalues above zero: values [n], rising.
Clipped clip_eigenvalues(const Tensor& values, int64_t rank, std::string_view what) {
  const double negative = -values.clamp_max(0).sum().item<double>(), trace = values.clamp_min(0).sum().item<double>();
  if (!std::isfinite(negative) || !std::isfinite(trace))
    fail<NumericError>("frechet: {} has eigenvalues that are not finite", what);
  const double relative = negative > 0 ? negative / std::max(trace, 1e-300) : 0.0;
  // An all but zero matrix has only rounding in it: compare with an absolute floor as well.
  if (relative > kClipTolerance && negative > 1e-12)
    fail<NumericError>(
        "frechet: negative eigenvalues of {} sum to {:.2e} of its trace, more than rounding explains ({:.0e})", what,
        relative, kClipTolerance);
  int64_t dropped = std::max<int64_t>(values.size(0) - rank, 0);
  if (values.slice(0, 0, dropped).abs().sum().item<double>() > kRankTolerance * trace) dropped = 0;
  return {values.slice(0, dropped).clamp_min(0), dropped, relative};
}

Tensor symmetric(const Tensor& m) { return (m + m.t()) * 0.5; }

// An eigen-solver's own words for infinity help nobody.
const Tensor& finite_matrix(const Tensor& m, std::string_view what) {
  if (!at::isfinite(m).all().item<bool>())
    fail<NumericError>("frechet: {} overflows float64; the features are too large to be an encoder's", what);
  return m;
}

Tensor finite_features(const Tensor& features) {
  const Tensor x = features.detach().to(at::kCPU, at::kDouble), finite = at::isfinite(x).all(1);
  if (!finite.all().item<bool>())
    fail<NumericError>("features: row {} of the set is not finite; the encoder or its input is broken",
                       at::logical_not(finite).nonzero()[0].item<int64_t>());
  return x;
}

struct Centred {
  Tensor mean, rows;  // [D]; [N, D] = (x - mean) / sqrt(N - 1): S = rows^T rows
};

Centred centre(const Tensor& features) {
  const auto [N, D] = dims<2>(features);
  if (N < 2) fail<ConfigError>("frechet: {} samples; a covariance needs at least 2", N);
  const Tensor x = finite_features(features);
  const Tensor mean = x.mean(0);
  return {mean, finite_matrix((x - mean) / std::sqrt(static_cast<double>(N - 1)), "a set of features")};
}

FeatureStatistics statistics_of(const Tensor& features) {
  FeatureStatistics s;
  s.add(features);
  return s;
}

void expect_dim(int64_t other, int64_t own) {
  if (other != own) fail<ConfigError>("frechet: {} features against {}; both sets need the same encoder", other, own);
}

double checked_distance(double mean_term, double traces, double root_trace) {
  const double distance = mean_term + traces - 2 * root_trace;
  if (!std::isfinite(distance))
    fail<NumericError>("frechet: the distance is {}: the features overflow float64", distance);
  // Equal sets give +-1e-8 of the traces: rounding of square roots of rounding.
  if (distance < -1e-4 * traces - 1e-9) fail<NumericError>("frechet: a distance of {:.3e}", distance);
  return std::max(distance, 0.0);
}

}  // namespace

FrechetReference::FrechetReference(const FeatureStatistics& s)
    : count_(s.count()), rank_(s.rank_limit()), mean_(s.mean()) {
  const NoGrad no_grad;
  const Tensor covariance = symmetric(s.covariance());
  trace_ = covariance.trace().item<double>();
  finite_matrix(covariance, "the reference covariance");
  // Cholesky's factor costs a twentieth of the eigen-solver's and is as accurate: where it runs through, F F^T differs
  // from S1 by rounding only. It stops at a singular S1.
  if (rank_ == dim()) {
    auto [lower, stopped] = at::linalg_cholesky_ex(covariance);
    if (stopped.item<int64_t>() == 0 && at::isfinite(lower.diagonal()).all().item<bool>()) {
      factor_ = lower;
      return;
    }
  }
  const auto [values, vectors] = at::linalg_eigh(covariance);
  const Clipped kept = clip_eigenvalues(values, rank_, "the reference covariance");
  factor_ = vectors.slice(1, kept.dropped) * kept.values.sqrt();
  rank_ = factor_.size(1);
}

FrechetReference FrechetReference::of_features(const Tensor& features) {
  const NoGrad no_grad;
  const auto [N, D] = dims<2>(features);
  if (N >= D) return FrechetReference(statistics_of(features));
  const Centred x = centre(features);
  FrechetReference out;
  out.count_ = N, out.rank_ = N - 1;  // the rows sum to zero
  out.mean_ = x.mean, out.factor_ = x.rows.t();
  out.trace_ = at::square(x.rows).sum().item<double>();
  return out;
}

int64_t FrechetReference::dim() const { return mean_.size(0); }

double FrechetReference::distance(const FeatureStatistics& other, FrechetDetails* details) const {
  const NoGrad no_grad;
  expect_dim(other.dim(), dim());
  const Tensor covariance = symmetric(other.covariance());
  return distance(other.mean(), covariance.trace().item<double>(), at::mm(factor_.t(), at::mm(covariance, factor_)),
                  other.rank_limit(), details);
}

double FrechetReference::distance(const Tensor& mean, double trace, const Tensor& product, int64_t rank,
                                  FrechetDetails* details) const {
  const NoGrad no_grad;
  // The solver reads one triangle: what rounding left in the other does not matter.
  const Clipped kept =
      clip_eigenvalues(at::linalg_eigvalsh(finite_matrix(product, "F^T S2 F")), std::min(rank_, rank), "F^T S2 F");
  const double mean_term = at::square(mean - mean_).sum().item<double>();
  const double traces = trace_ + trace, root_trace = kept.values.sqrt().sum().item<double>();
  if (details) *details = {mean_term, traces - 2 * root_trace, kept.relative};
  return checked_distance(mean_term, traces, root_trace);
}

double FrechetReference::distance_of_features(const Tensor& features, FrechetDetails* details) const {
  const NoGrad no_grad;
  const auto [N, D] = dims<2>(features);
  expect_dim(D, dim());
  if (N >= D) return distance(statistics_of(features), details);
  const Centred x = centre(features);
  const double mean_term = at::square(x.mean - mean_).sum().item<double>();
  const double traces = trace_ + at::square(x.rows).sum().item<double>();
  const Tensor product = finite_matrix(at::mm(x.rows, factor_), "X2 F");  // [N, rank]
  const double root_trace = at::linalg_svdvals(product).sum().item<double>();
  if (details) *details = {mean_term, traces - 2 * root_trace, 0};
  return checked_distance(mean_term, traces, root_trace);
}

double frechet_distance(const FeatureStatistics& a, const FeatureStatistics& b, FrechetDetails* details) {
  return FrechetReference(a).distance(b, details);
}

double frechet_distance_of_features(const Tensor& a, const Tensor& b, FrechetDetails* details) {
  // The smaller set on the side of the singular values; the larger one's factor is exact or of full rank.
  const bool swap = a.size(0) < b.size(0);
  return FrechetReference::of_features(swap ? b : a).distance_of_features(swap ? a : b, details);
}

}  // namespace fewstep::eval
