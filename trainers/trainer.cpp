#include "trainers/trainer.h"

#include "src/base/error.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep {

void Metrics::add(const std::string& name, const Tensor& sum, double count) {
  const NoGrad no_grad;
  auto& [total, n] = sums_[name];
  const Tensor value = sum.detach().to(at::kDouble);
  total = total.defined() ? total + value : value;
  n += count;
}

void Metrics::add(const std::string& name, double sum, double count) { add(name, at::scalar_tensor(sum, at::kDouble), count); }

void Metrics::merge(const Metrics& other) {
  for (const auto& [name, entry] : other.sums_) add(name, entry.first, entry.second);
}

std::map<std::string, double> Metrics::reduce(dist::World& world) {
  std::map<std::string, double> means;
  if (sums_.empty()) return means;
  std::vector<Tensor> parts;
  for (const auto& [name, entry] : sums_) {
    parts.push_back(entry.first.to(at::kCPU));
    parts.push_back(at::scalar_tensor(entry.second, at::kDouble));
  }
  Tensor all = at::stack(parts);
  world.all_reduce_sum(all);
  const double* values = all.const_data_ptr<double>();
  for (const auto& [name, entry] : sums_) {
    if (values[1] > 0) means[name] = values[0] / values[1];
    values += 2;
  }
  sums_.clear();
  return means;
}

}  // namespace fewstep
