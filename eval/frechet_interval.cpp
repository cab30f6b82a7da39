// Intervals, differences and extrapolations of the Frechet distance: many distances of parts of one set.
#include <cmath>
#include <numeric>
#include <optional>

#include "eval/frechet.h"
#include "eval/numpy_random.h"
#include "src/base/error.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep::eval {
namespace {

// Distances of a set and of parts of it, for fewer samples N than features D: S2 = Z^T Z / (N - 1) with centred rows Z,
// and the N x N matrix Z S1 Z^T / (N - 1) has the eigenvalues of S1 S2 other than zero. The products are made once; a
// part of the set takes its rows and columns and centres them anew. Faster by (D / N)^3, and closer: what is zero in
// D x D comes out as the square root of rounding there.
class SampleProducts {
 public:
  SampleProducts(const FrechetReference& reference, const Tensor& rows) : reference_(reference) {
    const Tensor x = rows.to(at::kDouble);
    mean_ = x.mean(0);
    centred_ = x - mean_;
    const Tensor root = at::mm(centred_, reference.factor());  // [N, rank]
    products_ = at::mm(root, root.t());
  }
  double distance(const Tensor& index) const {  // int64 [n]
    const Tensor z = centred_.index_select(0, index), shift = z.mean(0);
    const Tensor p = products_.index_select(0, index).index_select(1, index);
    const double n = static_cast<double>(index.size(0));
    if (n < 2) fail("covariance of {} samples: at least 2 are needed", index.size(0));
    const double squares = at::square(z).sum().item<double>() - n * at::square(shift).sum().item<double>();
    const Tensor centred = p - p.mean(0, true) - p.mean(1, true) + p.mean();
    return reference_.distance(mean_ + shift, squares / (n - 1), centred / (n - 1), index.size(0) - 1);
  }

 private:
  const FrechetReference& reference_;
  Tensor mean_, centred_, products_;  // [D]; [N, D]; [N, N]
};

// The distance of all samples, and of all without one group.
class GroupDistances {
 public:
  GroupDistances(const FrechetReference& reference, const GroupedStatistics& samples)
      : reference_(reference), samples_(samples) {
    if (samples.dim() != reference.dim())
      fail<ConfigError>("frechet: {} features against {}; both sets need the same encoder", samples.dim(),
                        reference.dim());
    if (samples.row_count() < reference.dim()) products_.emplace(reference, samples.rows());
  }
  double all() const {
    return products_ ? reference_.distance_of_features(samples_.rows()) : reference_.distance(samples_.total());
  }
  double without(int64_t group) const {
    const NoGrad no_grad;
    if (!products_) return reference_.distance(samples_.all_but(group));
    const Tensor kept = group < 0 ? at::arange(samples_.row_count(), at::kLong)
                                  : samples_.groups_of_rows().ne(group).nonzero().squeeze(1);
    return products_->distance(kept);
  }

 private:
  const FrechetReference& reference_;
  const GroupedStatistics& samples_;
  std::optional<SampleProducts> products_;
};

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
  const GroupDistances distances(reference, samples);
  Value value{.value = distances.all(), .n = samples.count()};
  const int64_t G = samples.groups();
  // Below two samples a group the replicates say nothing.
  if (G < 3 || samples.count() < 2 * G) return value;
  std::vector<double> left_out;
  for (int64_t g = 0; g < G; ++g) left_out.push_back(distances.without(g));
  value.ci95 = jackknife_interval(left_out);
  return value;
}

Value frechet_with_interval(const FrechetReference& reference, const Tensor& features, int64_t groups) {
  GroupedStatistics samples(groups);
  samples.add(features);
  return frechet_with_interval(reference, samples);
}

Value frechet_infinity(const FrechetReference& reference, const Tensor& features, int64_t points, uint32_t seed) {
  constexpr int64_t kSmallest = 5000;
  const int64_t N = features.size(0), smallest = std::min(kSmallest, N / 2);
  if (points < 3 || smallest < 2)
    fail<ConfigError>("FID-infinity: {} points and {} images; at least 3 and 4 are needed", points, N);
  NumpyRandom random(seed);
  std::optional<SampleProducts> products;
  if (N < reference.dim()) products.emplace(reference, features);
  std::vector<double> x, y;  // 1 / n, distance
  for (int64_t i = 0; i < points; ++i) {
    const int64_t n = smallest + (N - smallest) * i / (points - 1);
    std::vector<int64_t> rows = random.permutation(N);
    rows.resize(static_cast<size_t>(n));
    const Tensor index = at::tensor(rows, at::kLong);
    x.push_back(1.0 / static_cast<double>(n));
    if (products) {
      y.push_back(products->distance(index));
      continue;
    }
    FeatureStatistics statistics;
    statistics.add(features.index_select(0, index));
    y.push_back(reference.distance(statistics));
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
  const GroupDistances ours(reference, own), theirs(reference, baseline);
  const auto relative = [&](int64_t without) {
    const double d = theirs.without(without);
    if (d <= 0)
      fail<NumericError>("frechet_difference: the baseline's distance is {}, nothing can be relative to it", d);
    return (ours.without(without) - d) / d;
  };
  const double all = theirs.all();
  if (all <= 0)
    fail<NumericError>("frechet_difference: the baseline's distance is {}, nothing can be relative to it", all);
  Value value{.value = (ours.all() - all) / all, .n = own.count()};
  if (G < 3 || own.count() < 2 * G) return value;
  std::vector<double> left_out;
  for (int64_t g = 0; g < G; ++g) left_out.push_back(relative(g));
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
