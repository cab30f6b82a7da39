// The Frechet distance between Gaussians fitted to features, with its interval.
#pragma once
#include "eval/metric.h"
#include "eval/statistics.h"

namespace fewstep::eval {

// What the eigen-solver had to mend: eigenvalues below zero come from rounding and are clipped.
struct FrechetDetails {
  double mean_term = 0, trace_term = 0;
  double clipped = 0;  // sum of |negative eigenvalues| of S1^1/2 S2 S1^1/2, relative to its trace
};

// One side of the distance, with a factor of its covariance cached: the reference is compared with many sets. One
// thread at a time: the factor is made by the first distance that needs it.
class FrechetReference {
 public:
  explicit FrechetReference(const FeatureStatistics& statistics);
  // FD = |mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr (F^T S2 F)^1/2 with S1 = F F^T: F^T S2 F is symmetric and has the
  // eigenvalues of S1 S2 for any such F. Float64 and symmetric eigen-solvers throughout.
  double distance(const FeatureStatistics& other, FrechetDetails* details = nullptr) const;
  // The same from a mean [D], tr S2, and any symmetric matrix with the eigenvalues of S1 S2 other than zero, of which
  // S2 can have `rank` at most: those beyond the rank are rounding, whose square root would make 1e-8 of 1e-16.
  double distance(const Tensor& mean, double trace, const Tensor& product, int64_t rank,
                  FrechetDetails* details = nullptr) const;
  int64_t count() const { return count_; }
  int64_t dim() const;
  Tensor mean() const { return mean_; }              // float64 [D]
  Tensor covariance() const { return covariance_; }  // float64 [D, D]

 private:
  const Tensor& factor() const;
  int64_t count_, rank_;
  Tensor mean_, covariance_;
  mutable Tensor factor_;  // [D, D]
  double trace_;
};

double frechet_distance(const FeatureStatistics& a, const FeatureStatistics& b, FrechetDetails* details = nullptr);

// Distance and the half width of its 95 % interval over the sampled set (the reference is held fixed).
// Delete-a-group jackknife: every replicate has the same N (1 - 1/G), so the 1/N bias of FD cancels in their spread;
// a bootstrap that draws with replacement would add a bias of its own (duplicates shrink the covariance).
Value frechet_with_interval(const FrechetReference& reference, const GroupedStatistics& samples);

// FID-infinity (Chong and Forsyth 2020, arXiv 1911.07023): the distance at `points` sizes between min(5000, N / 2) and
// N, evenly spaced, each on a random subset; a straight line in 1 / N; its value at 0, with the fit's own 95 %
// interval. The reference is held fixed, so its own bias of 1 / count stays. features [N, D]; ConfigError below 3
// points or 4 rows.
Value frechet_infinity(const FrechetReference& reference, const Tensor& features, int64_t points = 15,
                       uint32_t seed = 0);

// (FD(own) - FD(baseline)) / FD(baseline) and its interval, both distances to `reference`. Sample i of both sets
// belongs together (the same caption): leaving out the same group of both cancels what they share, so that a difference
// far below either distance's own interval can be told. Equal N of both cancels most of the bias of 1/N as well.
Value frechet_difference(const FrechetReference& reference, const GroupedStatistics& own,
                         const GroupedStatistics& baseline);

// Two-sided 95 % quantile of Student's t.
double student_t95(int64_t degrees_of_freedom);

}  // namespace fewstep::eval
