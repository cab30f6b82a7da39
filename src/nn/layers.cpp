#include "src/nn/layers.h"

#include <cmath>

#include "src/base/error.h"
#include "src/nn/fused.h"
#include "src/nn/onednn_linear.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep::nn {
namespace {

std::optional<Tensor> maybe(const Tensor& t) { return t.defined() ? std::optional<Tensor>(t) : std::nullopt; }

// What every active adapter of a layer adds. `down` applies A, `up` applies B.
template <class Down, class Up>
Tensor with_adapters(Tensor y, const Tensor& x, const LoraSlots& slots, Down down, Up up) {
  for (const ActiveAdapter& active : active_adapters())
    for (const LoraSlot& slot : slots) {
      if (slot.adapter != active.name || active.strength == 0) continue;
      // Adapters of a half-precision base are float32.
      const Tensor delta = up(down(x.to(slot.a.scalar_type()), slot.a), slot.b);
      y = at::add(y, delta.to(y.scalar_type()), slot.scale * active.strength);
    }
  return y;
}

void ones_and_zeros(Tensor& weight, Tensor& bias) {
  const NoGrad no_grad;
  if (weight.defined()) weight.fill_(1.0);
  if (bias.defined()) bias.zero_();
}

}  // namespace

Linear::Linear(int64_t in_features, int64_t out_features, bool with_bias) {
  parameter("weight", weight, {out_features, in_features});
  if (with_bias) parameter("bias", bias, {out_features});
}

Tensor Linear::operator()(const Tensor& x) const {
  Tensor y = onednn_ ? onednn_linear(x, weight, bias) : at::linear(x, weight, maybe(bias));
  if (lora.empty() || active_adapters().empty()) return y;
  const auto apply = [](const Tensor& t, const Tensor& w) { return at::linear(t, w); };
  return with_adapters(std::move(y), x, lora, apply, apply);
}

void Linear::reset(at::Generator& generator) {
  const double bound = 1.0 / std::sqrt(static_cast<double>(weight.size(1)));
  init_uniform(weight, bound, generator);
  if (bias.defined()) init_uniform(bias, bound, generator);
}

Conv2d::Conv2d(int64_t in_channels, int64_t out_channels, const Conv2dOptions& options) : options_(options) {
  if (options.groups < 1 || in_channels % options.groups != 0 || out_channels % options.groups != 0)
    fail("Conv2d: {} -> {} channels do not divide into {} groups", in_channels, out_channels, options.groups);
  parameter("weight", weight, {out_channels, in_channels / options.groups, options.kernel, options.kernel});
  if (options.bias) parameter("bias", bias, {out_channels});
}

Tensor Conv2d::operator()(const Tensor& x) const {
  Tensor y = at::conv2d(x, weight, maybe(bias), options_.stride, options_.padding, 1, options_.groups);
  if (lora.empty() || active_adapters().empty()) return y;
  const auto down = [&](const Tensor& t, const Tensor& a) {
    return at::conv2d(t, a, {}, options_.stride, options_.padding);
  };
  const auto up = [](const Tensor& t, const Tensor& b) { return at::conv2d(t, b); };
  return with_adapters(std::move(y), x, lora, down, up);
}

void Conv2d::reset(at::Generator& generator) {
  const double bound = 1.0 / std::sqrt(static_cast<double>(weight.size(1) * options_.kernel * options_.kernel));
  init_uniform(weight, bound, generator);
  if (bias.defined()) init_uniform(bias, bound, generator);
}

Embedding::Embedding(int64_t count, int64_t dim) { parameter("weight", weight, {count, dim}); }

Tensor Embedding::operator()(const Tensor& ids) const { return at::embedding(weight, ids); }

void Embedding::reset(at::Generator& generator) { init_normal(weight, 1.0, generator); }

RMSNorm::RMSNorm(int64_t dim, double eps) : eps_(eps) { parameter("weight", weight, {dim}); }

Tensor RMSNorm::operator()(const Tensor& x) const {
  return rms_norm(x, weight, eps_);
}

void RMSNorm::reset(at::Generator&) {
  Tensor none;
  ones_and_zeros(weight, none);
}

LayerNorm::LayerNorm(int64_t dim, double eps, bool affine) : dim_(dim), eps_(eps) {
  if (!affine) return;
  parameter("weight", weight, {dim});
  parameter("bias", bias, {dim});
}

Tensor LayerNorm::operator()(const Tensor& x) const {
  return at::layer_norm(x, {dim_}, maybe(weight), maybe(bias), eps_);
}

void LayerNorm::reset(at::Generator&) { ones_and_zeros(weight, bias); }

GroupNorm::GroupNorm(int64_t groups, int64_t channels, double eps) : groups_(groups), eps_(eps) {
  if (groups < 1 || channels % groups != 0)
    fail("GroupNorm: {} channels do not divide into {} groups", channels, groups);
  parameter("weight", weight, {channels});
  parameter("bias", bias, {channels});
}

Tensor GroupNorm::operator()(const Tensor& x) const { return at::group_norm(x, groups_, weight, bias, eps_); }

void GroupNorm::reset(at::Generator&) { ones_and_zeros(weight, bias); }

}  // namespace fewstep::nn
