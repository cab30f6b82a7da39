// Mean and covariance of features: streaming, float64, mergeable in any order, exact for any last batch.
#pragma once
#include <cstdint>
#include <vector>

#include "src/dist/world.h"
#include "src/tensor/tensor.h"

namespace fewstep::eval {

class FeatureStatistics {
 public:
  // features: floating [B, D], B may be 0 or 1. NumericError naming the first row that is not finite.
  void add(const Tensor& features);
  // Chan, Golub, LeVeque 1979, eq. 2.1: as if both sets had been added to one object.
  void merge(const FeatureStatistics& other);
  // Gathers every rank's part and merges in rank order: all ranks end with the same bits.
  void reduce(dist::World& world);

  int64_t count() const { return count_; }
  int64_t dim() const;
  Tensor mean() const { return mean_; }  // float64 [D]
  Tensor covariance() const;             // float64 [D, D], ddof = 1 (numpy.cov); Error below two samples

  // Of a mean [D] and a covariance [D, D] (ddof = 1) from elsewhere. count 0: unknown; it then counts as 2.
  static FeatureStatistics from_moments(const Tensor& mean, const Tensor& covariance, int64_t count);

 private:
  int64_t count_ = 0;
  Tensor mean_, scatter_;  // [D]; [D, D] = sum (x - mean)(x - mean)^T
};

// G statistics, sample i in group i % G: the total, and the total without one group, for the jackknife. Several rows of
// one sample (patches of an image) share its group: they are not independent, and the jackknife must not take them so.
class GroupedStatistics {
 public:
  explicit GroupedStatistics(int64_t groups = 20) : groups_(static_cast<size_t>(groups)) {}
  void add(const Tensor& features);  // [B, D], or [B, P, D]: P rows a sample
  FeatureStatistics total() const { return all_but(-1); }
  FeatureStatistics all_but(int64_t left_out) const;
  int64_t groups() const { return static_cast<int64_t>(groups_.size()); }
  int64_t count() const { return seen_; }  // samples

 private:
  std::vector<FeatureStatistics> groups_;
  int64_t seen_ = 0;
};

}  // namespace fewstep::eval
