#include "eval/distance_metric.h"

#include "src/base/error.h"
#include "src/tensor/ops.h"

namespace fewstep::eval {

DistanceMetric::DistanceMetric(std::string name, const FrechetReference& reference, Features features)
    : name_(std::move(name)),
      reference_(reference),
      features_(std::move(features)),
      samples_(reference.dim() > 512 ? 10 : 20) {}  // each costs a D x D eigen-solver

void DistanceMetric::add(const EvalBatch& batch) { samples_.add(features_(batch)); }

std::map<std::string, Value> DistanceMetric::result() const {
  if (samples_.count() < 2) return {};
  Value value = frechet_with_interval(reference_, samples_);
  value.n = samples_.row_count();
  if (value.n < reference_.dim())
    value.note = fmt::format("N = {} below D = {}: dominated by bias", value.n, reference_.dim());
  return {{name_, value}};
}

}  // namespace fewstep::eval
