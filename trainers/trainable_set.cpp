#include "trainers/trainable_set.h"

#include "src/base/error.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep {
namespace {
// Before AdamW copies the weights into its EMA: every rank starts from rank 0's.
NamedTensors broadcast(dist::World& world, const NamedTensors& parameters) {
  dist::broadcast_parameters(world, parameters);
  return parameters;
}
}  // namespace

NamedTensors start_network(nn::Module& module, const TrainContext& context, uint64_t offset) {
  module.to(context.world.device());
  module.initialise(context.seed + offset);
  module.requires_grad(true);
  return module.parameters();
}

TrainableSet::TrainableSet(std::string name, const NamedTensors& parameters, const OptimizerConfig& config,
                           dist::World& world, Horizon horizon)
    : name_(std::move(name)),
      config_(config),
      horizon_(horizon),
      adamw_(broadcast(world, parameters), config),
      parallel_(world, adamw_.parameters()) {}

double TrainableSet::learning_rate(int64_t step) const { return fewstep::learning_rate(config_, step - horizon_.first, horizon_.steps); }

double TrainableSet::step(int64_t step) {
  const NoGrad no_grad;
  const Tensor norm = adamw_.grad_norm();
  const double value = norm.item<double>();
  if (!std::isfinite(value)) fail<NumericError>("the gradient of '{}' is not finite (norm {})", name_, value);
  adamw_.step(learning_rate(step), norm);
  adamw_.update_ema();
  adamw_.zero_grad();
  return value;
}

namespace {
void prefix_into(TensorMap& out, const std::string& prefix, const TensorMap& in) {
  for (const auto& [key, tensor] : in) out.emplace(prefix + "." + key, tensor);
}
TensorMap without_prefix(const std::map<std::string, TensorMap>& files, const std::string& stem, const std::string& prefix) {
  TensorMap out;
  const auto file = files.find(stem);
  if (file == files.end()) fail<DataError>("the checkpoint has no {}.safetensors, which '{}' needs to resume", stem, prefix);
  for (const auto& [key, tensor] : file->second)
    if (key.starts_with(prefix + ".")) out.emplace(key.substr(prefix.size() + 1), tensor);
  return out;
}
}  // namespace

void TrainableSet::add_state(std::map<std::string, TensorMap>& files) const {
  prefix_into(files["optimizer"], name_, adamw_.state());
  TensorMap raw;
  for (const auto& [key, tensor] : adamw_.parameters()) raw.emplace(key, tensor.detach());
  prefix_into(files["weights"], name_, raw);
  if (has_ema()) prefix_into(files["ema"], name_, adamw_.ema_state());
}

void TrainableSet::load_state(const std::map<std::string, TensorMap>& files) {
  const NoGrad no_grad;
  adamw_.load_state(without_prefix(files, "optimizer", name_));
  const TensorMap raw = without_prefix(files, "weights", name_);
  for (const auto& [key, tensor] : adamw_.parameters()) {
    const auto found = raw.find(key);
    if (found == raw.end()) fail<DataError>("the checkpoint's weights.safetensors has no '{}.{}'", name_, key);
    if (found->second.sizes() != tensor.sizes())
      fail<DataError>("the checkpoint's '{}.{}' has {} values, the model has {}", name_, key, found->second.numel(),
                      tensor.numel());
    tensor.copy_(found->second);
  }
  if (has_ema()) adamw_.load_ema_state(without_prefix(files, "ema", name_));
}

}  // namespace fewstep
