#include "src/tensor/optim.h"

#include <ATen/Parallel.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "src/base/error.h"
#include "src/base/text.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep {
namespace {

constexpr int64_t kAlignment = 64;  // bytes: a cache line, and the widest vector load

// A tensor over a part of `flat`'s storage. Not a view in autograd's eyes: it has its own version counter, so
// that it may be a leaf.
Tensor alias(const Tensor& flat, int64_t offset, at::IntArrayRef shape) {
  const std::vector<int64_t> strides = at::empty(shape, at::kMeta).strides().vec();
  return at::empty({0}, flat.options()).set_(flat.storage(), offset, shape, strides);
}

// Sum of squares in double over fixed chunks: exact enough for 1e9 elements, and the same for any number of threads.
template <class T>
double squared_norm(const T* x, int64_t n) {
  constexpr int64_t kChunk = 16384;
  std::vector<double> sums(static_cast<size_t>((n + kChunk - 1) / kChunk));
  at::parallel_for(0, static_cast<int64_t>(sums.size()), 4, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      std::array<double, 8> lane{};
      const int64_t last = std::min(n, (c + 1) * kChunk);
      int64_t i = c * kChunk;
      for (; i + 8 <= last; i += 8)
        for (int64_t j = 0; j < 8; ++j) lane[static_cast<size_t>(j)] += static_cast<double>(x[i + j]) * x[i + j];
      for (; i < last; ++i) lane[0] += static_cast<double>(x[i]) * x[i];
      double sum = 0;
      for (double l : lane) sum += l;
      sums[static_cast<size_t>(c)] = sum;
    }
  });
  double total = 0;
  for (double s : sums) total += s;
  return total;
}

Tensor squared_norm(const Tensor& flat) {
  const auto options = flat.options().dtype(at::kDouble);
  if (flat.is_cpu() && flat.scalar_type() == at::kFloat)
    return at::full({}, squared_norm(flat.const_data_ptr<float>(), flat.numel()), options);
  if (flat.is_cpu() && flat.scalar_type() == at::kDouble)
    return at::full({}, squared_norm(flat.const_data_ptr<double>(), flat.numel()), options);
  return at::linalg_vector_norm(flat, 2, {}, false, at::kFloat).to(at::kDouble).square();
}

// What is wrong with `given` as the tensors `wanted`; "" when nothing.
std::string mismatch(const TensorMap& wanted, const TensorMap& given) {
  std::vector<std::string> missing, extra, shape;
  for (const auto& [name, tensor] : wanted) {
    const auto it = given.find(name);
    if (it == given.end())
      missing.push_back(name);
    else if (it->second.sizes() != tensor.sizes())
      shape.push_back(fmt::format("{} is [{}], not [{}]", name, fmt::join(it->second.sizes(), ", "),
                                  fmt::join(tensor.sizes(), ", ")));
  }
  for (const auto& [name, tensor] : given)
    if (!wanted.contains(name)) extra.push_back(name);
  std::string text;
  if (!missing.empty()) text += fmt::format("; missing: {}", fmt::join(missing, ", "));
  if (!extra.empty()) text += fmt::format("; extra: {}", fmt::join(extra, ", "));
  if (!shape.empty()) text += fmt::format("; another shape: {}", fmt::join(shape, ", "));
  return text;
}

void copy_all(const TensorMap& to, const TensorMap& from, std::string_view what) {
  const std::string problem = mismatch(to, from);
  if (!problem.empty()) fail<DataError>("{} does not fit the parameters being trained{}", what, problem);
  for (const auto& [name, tensor] : to) tensor.copy_(from.at(name));
}

}  // namespace

void describe(config::Visitor& v, OptimizerConfig& c) {
  static constexpr config::Choice kSchedules[] = {{"constant", static_cast<int>(LrSchedule::constant)},
                                                  {"cosine", static_cast<int>(LrSchedule::cosine)},
                                                  {"linear", static_cast<int>(LrSchedule::linear)}};
  static constexpr config::Choice kWarmups[] = {{"none", static_cast<int>(EmaWarmup::none)},
                                                {"diffusers", static_cast<int>(EmaWarmup::diffusers)}};
  v.field("lr", c.lr, "peak learning rate", config::kPositive);
  v.field("beta1", c.beta1, "decay of the mean of gradients", config::Range{0.0, 1.0});
  v.field("beta2", c.beta2, "decay of the mean of squared gradients", config::Range{0.0, 1.0});
  v.field("eps", c.eps, "added to the root of the second moment", config::kPositive);
  v.field("weight_decay", c.weight_decay, "decoupled, on parameters with two or more dimensions", config::kNonNegative);
  v.field("clip_norm", c.clip_norm, "largest global L2 norm of the gradient; 0: no clipping", config::kNonNegative);
  v.field("schedule", c.schedule, "learning rate after the warm-up", kSchedules);
  v.field("warmup_steps", c.warmup_steps, "steps of linear warm-up", config::kNonNegative);
  v.field("final_lr_fraction", c.final_lr_fraction, "of the peak, reached at the last step", config::kUnit);
  v.field("ema_decay", c.ema_decay, "of the moving average of the weights; 0: none", config::Range{0.0, 1.0});
  v.field("ema_warmup", c.ema_warmup, "diffusers: after n updates the decay is at most (1 + n) / (10 + n), the first copies", kWarmups);
  v.check(c.beta1 < 1 && c.beta2 < 1, c.beta1 < 1 ? "beta2" : "beta1", "must be below 1");
  v.check(c.ema_decay < 1, "ema_decay", "must be below 1");
}

double ema_decay(const OptimizerConfig& c, int64_t updates) {
  if (c.ema_warmup == EmaWarmup::none) return c.ema_decay;
  if (updates == 0) return 0.0;
  const auto n = static_cast<double>(updates);
  return std::min(c.ema_decay, (1 + n) / (10 + n));
}

double learning_rate(const OptimizerConfig& c, int64_t step, int64_t total_steps) {
  const auto at = [](int64_t x) { return static_cast<double>(x); };
  if (step < c.warmup_steps) return c.lr * at(step + 1) / at(c.warmup_steps + 1);  // the peak at step warmup_steps
  if (c.schedule == LrSchedule::constant) return c.lr;
  const int64_t length = std::max<int64_t>(1, total_steps - 1 - c.warmup_steps);
  const double t = std::clamp(at(step - c.warmup_steps) / at(length), 0.0, 1.0);
  const double shape = c.schedule == LrSchedule::cosine ? 0.5 * (1 + std::cos(std::numbers::pi * t)) : 1 - t;
  return c.lr * (c.final_lr_fraction + (1 - c.final_lr_fraction) * shape);
}

AdamW::AdamW(NamedTensors parameters, const OptimizerConfig& config)
    : config_(config), parameters_(std::move(parameters)) {
  const NoGrad no_grad;
  if (parameters_.empty()) fail<ConfigError>("optimizer: there is no parameter to train");
  std::vector<int64_t> sizes;
  for (const auto& [name, p] : parameters_) {
    if (!p.requires_grad()) fail("optimizer: parameter '{}' requires no gradient: leave it out or unfreeze it", name);
    if (!p.is_leaf()) fail("optimizer: '{}' is computed from other tensors: only leaves can be trained", name);
    const double decay = p.dim() >= 2 ? config_.weight_decay : 0.0;
    const auto belongs = [&, &q = p](const Group& group) {
      return group.decayed == (q.dim() >= 2) && group.options.dtype() == q.dtype() &&
             group.options.device() == q.device();
    };
    const auto g = static_cast<size_t>(std::find_if(groups_.begin(), groups_.end(), belongs) - groups_.begin());
    if (g == groups_.size()) {
      Group group;
      group.options = at::TensorOptions().dtype(p.dtype()).device(p.device());
      group.weight_decay = decay;
      group.decayed = p.dim() >= 2;
      groups_.push_back(std::move(group));
      sizes.push_back(0);
    }
    places_.emplace_back(static_cast<int>(g), sizes[g]);
    const int64_t unit = kAlignment / p.element_size();
    sizes[g] += (p.numel() + unit - 1) / unit * unit;
  }
  for (size_t g = 0; g < groups_.size(); ++g) allocate(groups_[g], sizes[g]);
  for (size_t i = 0; i < parameters_.size(); ++i) {
    Tensor& p = parameters_[i].tensor;
    const Group& group = groups_[static_cast<size_t>(places_[i].first)];
    const Tensor weight = alias(group.weight, places_[i].second, p.sizes());
    weight.copy_(p);
    p.set_data(weight);  // the handles in modules are the same TensorImpl and see the new storage
    p.mutable_grad() = alias(group.grad, places_[i].second, p.sizes());
  }
  for (Group& group : groups_)
    if (has_ema()) group.ema = group.weight.clone();
}

void AdamW::allocate(Group& group, int64_t size) {
  group.weight = at::zeros({size}, group.options);  // padding stays zero: it never moves, and adds nothing to norms
  group.grad = at::zeros({size}, group.options);
  group.exp_avg = at::zeros({size}, group.options);
  group.exp_avg_sq = at::zeros({size}, group.options);
  group.updates = at::zeros({}, group.options.dtype(at::kFloat));
}

void AdamW::zero_grad() {
  const NoGrad no_grad;
  for (Group& group : groups_) group.grad.zero_();
  // Something (a checkpointing hook, a caller) may have replaced a gradient by a tensor of its own.
  for (size_t i = 0; i < parameters_.size(); ++i) {
    Tensor& p = parameters_[i].tensor;
    const Group& group = groups_[static_cast<size_t>(places_[i].first)];
    if (!p.grad().defined() || p.grad().storage().unsafeGetStorageImpl() != group.grad.storage().unsafeGetStorageImpl())
      p.mutable_grad() = alias(group.grad, places_[i].second, p.sizes());
  }
}

Tensor AdamW::grad_norm() const {
  const NoGrad no_grad;
  Tensor sum;
  for (const Group& group : groups_) {
    const Tensor square = squared_norm(group.grad);
    sum = sum.defined() ? sum + square.to(sum.device()) : square;
  }
  return sum.sqrt();
}

void AdamW::step(double lr, const Tensor& norm) {
  const NoGrad no_grad;
  // As torch.nn.utils.clip_grad_norm_: the gradient times min(1, clip / (norm + 1e-6)).
  Tensor factor;
  if (config_.clip_norm > 0) {
    factor = (config_.clip_norm / (norm.to(at::kDouble) + 1e-6)).clamp_max(1.0);
    if (factor.is_cpu() && factor.item<double>() == 1.0) factor = Tensor();
  }
  for (Group& group : groups_) {
    std::optional<Tensor> grad_scale;
    // The kernel divides by grad_scale on its way, which saves a pass over the gradient; it is a float, too coarse for
    // double parameters.
    if (factor.defined() && group.weight.scalar_type() != at::kDouble)
      grad_scale = factor.reciprocal().to(group.weight.device(), at::kFloat);
    else if (factor.defined())
      group.grad.mul_(factor.to(group.grad.device()));
    group.updates.add_(1);
    at::_fused_adamw_({group.weight}, {group.grad}, {group.exp_avg}, {group.exp_avg_sq}, {}, {group.updates}, lr,
                      config_.beta1, config_.beta2, group.weight_decay, config_.eps, /*amsgrad=*/false,
                      /*maximize=*/false, grad_scale);
  }
}

void AdamW::update_ema() {
  const NoGrad no_grad;
  if (!has_ema()) return;
  const double decay = ema_decay(config_, ema_updates_++);
  for (Group& group : groups_) group.ema.lerp_(group.weight, 1.0 - decay);
}

void AdamW::swap_ema() {
  const NoGrad no_grad;
  if (!has_ema()) return;
  constexpr int64_t kChunk = 1 << 20;  // a third copy of the weights never exists
  for (Group& group : groups_)
    for (int64_t i = 0; i < group.weight.numel(); i += kChunk) {
      const int64_t n = std::min(kChunk, group.weight.numel() - i);
      const Tensor weight = group.weight.narrow(0, i, n), ema = group.ema.narrow(0, i, n), kept = weight.clone();
      weight.copy_(ema);
      ema.copy_(kept);
    }
}

int64_t AdamW::updates() const { return static_cast<int64_t>(groups_.front().updates.item<float>()); }

TensorMap AdamW::state() const {
  const NoGrad no_grad;
  TensorMap out;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const auto& [name, p] = parameters_[i];
    const Group& group = groups_[static_cast<size_t>(places_[i].first)];
    out.emplace("exp_avg." + name, alias(group.exp_avg, places_[i].second, p.sizes()));
    out.emplace("exp_avg_sq." + name, alias(group.exp_avg_sq, places_[i].second, p.sizes()));
  }
  out.emplace("updates", at::full({}, updates(), at::kLong));
  return out;
}

void AdamW::load_state(const TensorMap& tensors) {
  const NoGrad no_grad;
  const TensorMap own = state();
  copy_all(own, tensors, "optimizer state");
  for (Group& group : groups_) group.updates.fill_(static_cast<double>(own.at("updates").item<int64_t>()));
}

TensorMap AdamW::ema_state() const {
  const NoGrad no_grad;
  TensorMap out;
  if (!has_ema()) return out;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const auto& [name, p] = parameters_[i];
    out.emplace(name, alias(groups_[static_cast<size_t>(places_[i].first)].ema, places_[i].second, p.sizes()));
  }
  if (config_.ema_warmup != EmaWarmup::none) out.emplace("ema_updates", at::full({}, ema_updates_, at::kLong));
  return out;
}

void AdamW::load_ema_state(const TensorMap& tensors) {
  const NoGrad no_grad;
  if (!has_ema()) fail("EMA weights are given, but optimizer.ema_decay is 0: set it or leave them out");
  const TensorMap own = ema_state();
  copy_all(own, tensors, "EMA state");
  if (const auto n = own.find("ema_updates"); n != own.end()) ema_updates_ = n->second.item<int64_t>();
}

}  // namespace fewstep
