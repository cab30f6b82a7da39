#include "trainers/autoencoder_objective.h"

#include <algorithm>

#include "src/base/error.h"
#include "src/tensor/ops.h"

namespace fewstep {

void describe(config::Visitor& v, AdversarialConfig& c) {
  v.field("weight", c.weight, "weight of the adversarial term; 0: no discriminator", config::kNonNegative);
  v.field("start", c.start, "share of the steps before it begins", config::kUnit);
  v.field("discriminator", c.discriminator, "PatchGAN");
  v.field("optimizer", c.optimizer, "of the discriminator");
}

void describe(config::Visitor& v, AdaptiveAdversarialConfig& c) {
  describe(v, static_cast<AdversarialConfig&>(c));
  v.field("adaptive", c.adaptive,
          "times |grad nll| / (|grad adversarial| + 1e-4) at the decoder's last layer, at most 1e4, of the global batch");
}

void describe(config::Visitor& v, RangeConfig& c) {
  v.field("every", c.every, "steps between measurements of the decoder's largest |activation|; 0: none", config::kNonNegative);
  v.field("limit", c.limit, "largest value allowed: float16's", {1e-6});
  v.field("penalty", c.penalty, "weight of the sum over an image's activations of relu(|a| / limit - penalty_from)^2; 0: none",
          config::kNonNegative);
  v.field("penalty_from", c.penalty_from, "share of the limit where the penalty begins", config::kUnit);
}

Tensor laplace_nll(const Tensor& x, const Tensor& target, const Tensor& perceptual, const Tensor& logvar) {
  Tensor distance = (x - target).abs().sum();
  const auto pixels = static_cast<double>(x.numel() / x.size(0));  // of an image
  if (perceptual.defined()) distance = distance + perceptual * pixels;
  return (distance / logvar.exp() + logvar * static_cast<double>(x.numel())).sum();
}

double adaptive_weight(double nll_norm, double generator_norm) {
  return std::clamp(nll_norm / (generator_norm + 1e-4), 0.0, 1e4);
}

ActivationRange activation_range(const TensorMap& taps, const RangeConfig& config) {
  ActivationRange range;
  for (const auto& [name, a] : taps) {
    if (!name.starts_with("decoder.")) continue;
    const Tensor size = a.detach().abs(), largest = size.max(), above = size.gt(config.limit).sum();
    range.largest = range.largest.defined() ? at::maximum(range.largest, largest) : largest;
    range.above = range.above.defined() ? range.above + above : above;
    range.count += static_cast<double>(a.numel());
    if (config.penalty <= 0) continue;
    const Tensor excess = at::relu(a.abs() / config.limit - config.penalty_from).square().sum();
    range.excess = range.excess.defined() ? range.excess + excess : excess;
  }
  FEW_CHECK(range.largest.defined(), "no activation of the decoder was tapped");
  return range;
}

}  // namespace fewstep
