#include "eval/frechet.h"

#include <numeric>

#include "eval/numpy_random.h"
#include "src/base/error.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep::eval {
namespace {

// Negative eigenvalues beyond this part of the trace are no rounding: the matrix is not a covariance.
constexpr double kClipTolerance = 1e-6;

struct Clipped {
  Tensor values;        // >= 0
  double relative = 0;  // of the trace
};

Clipped clip_eigenvalues(const Tensor& values, std::string_view what) {
  const double negative = -values.clamp_max(0).sum().item<double>(), trace = values.clamp_min(0).sum().item<double>();
  if (!std::isfinite(negative) || !std::isfinite(trace))
    fail<NumericError>("frechet: {} has eigenvalues that are not finite", what);
  const double relative = negative > 0 ? negative / std::max(trace, 1e-300) : 0.0;
  // An all but zero matrix has only rounding in it: compare with an absolute floor as well.
  if (relative > kClipTolerance && negative > 1e-12)
    fail<NumericError>(
        "frechet: negative eigenvalues of {} sum to {:.2e} of its trace, more than rounding explains ({:.0e})", what,
        relative, kClipTolerance);
  return {values.clamp_min(0), relative};
}

Tensor symmetric(const Tensor& m) { return (m + m.t()) * 0.5; }

}  // namespace

FrechetReference::FrechetReference(const FeatureStatistics& s) : count_(s.count()), mean_(s.mean()) {
  const NoGrad no_grad;
  const Tensor covariance = symmetric(s.covariance());
  trace_ = covariance.trace().item<double>();
  const auto [values, vectors] = at::linalg_eigh(covariance);
  root_ = at::mm(vectors * clip_eigenvalues(values, "the reference covariance").values.sqrt(), vectors.t());
}

int64_t FrechetReference::dim() const { return mean_.size(0); }

double FrechetReference::distance(const FeatureStatistics& other, FrechetDetails* details) const {
  const NoGrad no_grad;
  if (other.dim() != dim())
    fail<ConfigError>("frechet: {} features against {}; both sets need the same encoder", other.dim(), dim());
  const Tensor covariance = symmetric(other.covariance());
  const double mean_term = at::square(other.mean() - mean_).sum().item<double>();
  const double trace = covariance.trace().item<double>();
  const Clipped product =
      clip_eigenvalues(at::linalg_eigvalsh(symmetric(at::mm(at::mm(root_, covariance), root_))), "S1^1/2 S2 S1^1/2");
  const double trace_term = trace_ + trace - 2 * product.values.sqrt().sum().item<double>();
  if (details) *details = {mean_term, trace_term, product.relative};
  const double distance = mean_term + trace_term;
  if (!std::isfinite(distance)) fail<NumericError>("frechet: the distance is {}", distance);
  // Equal sets give +-1e-8 of the traces: rounding of square roots of rounding.
  if (distance < -1e-4 * (trace_ + trace) - 1e-9) fail<NumericError>("frechet: a distance of {:.3e}", distance);
  return std::max(distance, 0.0);
}

double frechet_distance(const FeatureStatistics& a, const FeatureStatistics& b, FrechetDetails* details) {
  return FrechetReference(a).distance(b, details);
}

namespace {

// Half width of the 95 % interval from the values with one of G groups left out each.
double jackknife_interval(const std::vector<double>& left_out) {
  const double G = static_cast<double>(left_out.size());
  double mean = 0, squares = 0;
  for (double d : left_out) mean += d / G;
  for (double d : left_out) squares += (d - mean) * (d - mean);
  return student_t95(static_cast<int64_t>(left_out.size()) - 1) * std::sqrt(squares * (G - 1) / G);
}

}  // namespace

Value frechet_with_interval(const FrechetReference& reference, const GroupedStatistics& samples) {
  Value value{.value = reference.distance(samples.total()), .n = samples.count()};
  const int64_t G = samples.groups();
  // Below two samples a group the replicates say nothing.
  if (G < 3 || samples.count() < 2 * G) return value;
  std::vector<double> left_out;
  for (int64_t g = 0; g < G; ++g) left_out.push_back(reference.distance(samples.all_but(g)));
  value.ci95 = jackknife_interval(left_out);
  return value;
}

Value frechet_infinity(const FrechetReference& reference, const Tensor& features, int64_t points, uint32_t seed) {
  constexpr int64_t kSmallest = 5000;
  const int64_t N = features.size(0), smallest = std::min(kSmallest, N / 2);
  if (points < 3 || smallest < 2)
    fail<ConfigError>("FID-infinity: {} points and {} images; at least 3 and 4 are needed", points, N);
  NumpyRandom random(seed);
  std::vector<double> x, y;  // 1 / n, distance
  for (int64_t i = 0; i < points; ++i) {
    const int64_t n = smallest + (N - smallest) * i / (points - 1);
    std::vector<int64_t> rows = random.permutation(N);
    rows.resize(static_cast<size_t>(n));
    FeatureStatistics statistics;
    statistics.add(features.index_select(0, at::tensor(rows, at::kLong)));
    x.push_back(1.0 / static_cast<double>(n)), y.push_back(reference.distance(statistics));
  }
  const double m = static_cast<double>(points);
  const double mean_x = std::accumulate(x.begin(), x.end(), 0.0) / m,
               mean_y = std::accumulate(y.begin(), y.end(), 0.0) / m;
  double sxx = 0, sxy = 0, residuals = 0;
  for (size_t i = 0; i < x.size(); ++i)
    sxx += (x[i] - mean_x) * (x[i] - mean_x), sxy += (x[i] - mean_x) * (y[i] - mean_y);
  const double slope = sxy / sxx, intercept = mean_y - slope * mean_x;
  for (size_t i = 0; i < x.size(); ++i)
    residuals += (y[i] - intercept - slope * x[i]) * (y[i] - intercept - slope * x[i]);
  const double error = std::sqrt(residuals / (m - 2) * (1 / m + mean_x * mean_x / sxx));
  return {.value = intercept, .ci95 = student_t95(points - 2) * error, .n = N};
}

Value frechet_difference(const FrechetReference& reference, const GroupedStatistics& own,
                         const GroupedStatistics& baseline) {
  const int64_t G = own.groups();
  if (own.count() != baseline.count() || G != baseline.groups())
    fail("frechet_difference: {} samples in {} groups against {} in {}; pairs need equal numbers", own.count(), G,
         baseline.count(), baseline.groups());
  const auto relative = [&](const FeatureStatistics& a, const FeatureStatistics& b) {
    const double d = reference.distance(b);
    if (d <= 0)
      fail<NumericError>("frechet_difference: the baseline's distance is {}, nothing can be relative to it", d);
    return (reference.distance(a) - d) / d;
  };
  Value value{.value = relative(own.total(), baseline.total()), .n = own.count()};
  if (G < 3 || own.count() < 2 * G) return value;
  std::vector<double> left_out;
  for (int64_t g = 0; g < G; ++g) left_out.push_back(relative(own.all_but(g), baseline.all_but(g)));
  value.ci95 = jackknife_interval(left_out);
  return value;
}

double student_t95(int64_t n) {
  // Exact for n <= 8, where the expansion is worst; then Cornish-Fisher (Abramowitz & Stegun 26.7.5), error < 1e-3.
  static constexpr double kSmall[] = {12.7062, 4.30265, 3.18245, 2.77645, 2.57058, 2.44691, 2.36462, 2.30600};
  if (n < 1) fail("student_t95: {} degrees of freedom", n);
  if (n <= 8) return kSmall[n - 1];
  const double z = 1.959963984540054, v = static_cast<double>(n), z2 = z * z;
  const double g1 = z * (z2 + 1) / 4, g2 = z * (5 * z2 * z2 + 16 * z2 + 3) / 96;
  const double g3 = z * (3 * z2 * z2 * z2 + 19 * z2 * z2 + 17 * z2 - 15) / 384;
  return z + g1 / v + g2 / (v * v) + g3 / (v * v * v);
}

}  // namespace fewstep::eval
