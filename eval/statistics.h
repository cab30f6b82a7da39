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
  // The way back: without the samples of `part`, which were added before. Loses digits when little is left.
  void remove(const FeatureStatistics& part);
  // Gathers every rank's part and merges in rank order: all ranks end with the same bits.
  void reduce(dist::World& world);

  int64_t count() const { return count_; }
  int64_t dim() const;
  Tensor mean() const { return mean_; }  // float64 [D]
  Tensor covariance() const;             // float64 [D, D], ddof = 1 (numpy.cov); Error below two samples
  // What the covariance's rank cannot exceed: count - 1, or D where the number of samples is not known.
  int64_t rank_limit() const;

  // Of a mean [D] and a covariance [D, D] (ddof = 1) from elsewhere. count 0: unknown; it then counts as 2.
  static FeatureStatistics from_moments(const Tensor& mean, const Tensor& covariance, int64_t count);

 private:
  int64_t count_ = 0;
  bool counted_ = true;    // false: count_ was made up by from_moments
  Tensor mean_, scatter_;  // [D]; [D, D] = sum (x - mean)(x - mean)^T
};

// Features in G groups, sample i in group i % G: the statistics of all, and of all without one group, for the
// jackknife. Keeps the features (N D floats): statistics of every group would be G D^2 doubles, 670 MB for 2048
// features. Several rows of one sample (patches of an image) share its group: they are not independent, and are not
// taken so.
class GroupedStatistics {
 public:
  explicit GroupedStatistics(int64_t groups = 20) : groups_(groups) {}
  // floating [B, D], or [B, P, D]: P rows a sample. NumericError naming the first row that is not finite.
  void add(const Tensor& features);
  FeatureStatistics total() const;
  FeatureStatistics all_but(int64_t group) const;  // -1: total()
  Tensor rows() const;                             // [R, D] in the order of the samples; undefined when empty
  Tensor groups_of_rows() const;                   // int64 [R]
  int64_t groups() const { return groups_; }
  int64_t count() const { return seen_; }      // samples
  int64_t row_count() const { return rows_; }  // count(), unless samples have several
  int64_t dim() const { return parts_.empty() ? 0 : parts_[0].size(1); }

 private:
  int64_t groups_, seen_ = 0, rows_ = 0;
  mutable std::vector<Tensor> parts_;  // rows() joins them
  std::vector<Tensor> sample_of_;      // int64, of the rows of each part
  mutable FeatureStatistics total_;    // of the first total_.count() rows
};

}  // namespace fewstep::eval
