// The Frechet distance of a set's features to a reference, as a metric; whose features and which reference is the maker's to say.
#pragma once
#include <functional>
#include <string>
#include <utility>

#include "eval/frechet.h"
#include "eval/metric.h"

namespace fewstep::eval {

class DistanceMetric : public Metric {
 public:
  // float [B, D], or [B, P, D] for P patches of each image: the interval's groups are images, N in the result counts rows.
  using Features = std::function<Tensor(const EvalBatch&)>;
  DistanceMetric(std::string name, const FrechetReference& reference, Features features);
  void add(const EvalBatch& batch) override;
  std::map<std::string, Value> result() const override;

 private:
  std::string name_;
  const FrechetReference& reference_;
  Features features_;
  GroupedStatistics samples_;
};

}  // namespace fewstep::eval
