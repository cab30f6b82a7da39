// The Frechet distance between Gaussians fitted to features, with its interval.
#pragma once
#include "eval/metric.h"
#include "eval/statistics.h"

namespace fewstep::eval {

// What the eigen-solver had to mend: eigenvalues below zero come from rounding and are clipped.
struct FrechetDetails {
  double mean_term = 0, trace_term = 0;
  double clipped = 0;  // sum of |negative eigenvalues| of S1^1/2 S2 S1^1/2, relative to its trace; 0 from features
};

// One side of the distance, with a factor F of its covariance S1 = F F^T cached: the reference is compared with many
// sets.
//   FD = |mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^1/2,
//   tr (S1 S2)^1/2 = tr (F^T S2 F)^1/2 = |X2c F|_* / sqrt(n2 - 1),
// where X2c are the other side's features less their mean and |.|_* is the sum of singular values. All in float64.
// Either side may have fewer samples than features. Eigenvalues beyond the rank that count - 1 samples can have are
// rounding: the square root would make 1e-16 of them 1e-8, so they are left out.
class FrechetReference {
 public:
  // F from Cholesky's factorization, [D, D]; of a singular S1 from the symmetric eigen-solver, [D, rank].
  explicit FrechetReference(const FeatureStatistics& statistics);
  // Below D rows F is X1c^T / sqrt(n1 - 1), without an eigen-solver; else as above. features: floating [N, D].
  // ConfigError below 2 rows, NumericError for a row that is not finite.
  static FrechetReference of_features(const Tensor& features);
  // By the eigenvalues of F^T S2 F.
  double distance(const FeatureStatistics& other, FrechetDetails* details = nullptr) const;
  // The same from a mean [D], tr S2, and any symmetric matrix with the eigenvalues of S1 S2 other than zero, of which
  // S2 can have `rank` at most.
  double distance(const Tensor& mean, double trace, const Tensor& product, int64_t rank,
                  FrechetDetails* details = nullptr) const;
  // By singular values when `features` [N, D] has fewer rows than features (no square root of rounding, and cheaper);
  // else from their statistics.
  double distance_of_features(const Tensor& features, FrechetDetails* details = nullptr) const;
  int64_t count() const { return count_; }
  int64_t dim() const;
  const Tensor& factor() const { return factor_; }  // float64 [D, rank]

 private:
  FrechetReference() = default;
  int64_t count_ = 0, rank_ = 0;
  Tensor mean_, factor_;  // [D]; [D, rank or more]
  double trace_ = 0;
};

double frechet_distance(const FeatureStatistics& a, const FeatureStatistics& b, FrechetDetails* details = nullptr);
// Of features [N1, D] and [N2, D]: by singular values when either has fewer rows than features, else as above.
double frechet_distance_of_features(const Tensor& a, const Tensor& b, FrechetDetails* details = nullptr);

// Distance and the half width of its 95 % interval over the sampled set (the reference is held fixed).
// Delete-a-group jackknife: every replicate has the same N (1 - 1/G), so the 1/N bias of FD cancels in their spread;
// a bootstrap that draws with replacement would add a bias of its own (duplicates shrink the covariance).
Value frechet_with_interval(const FrechetReference& reference, const GroupedStatistics& samples);
// Below D rows the value comes from singular values and every replicate from the N x N products of the features.
// The same of features [N, D], row i in group i % groups.
Value frechet_with_interval(const FrechetReference& reference, const Tensor& features, int64_t groups = 20);

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
