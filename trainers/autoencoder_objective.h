// The terms autoencoders are trained with beside their code: likelihood with a perceptual distance (Rombach et al. 2021),
// the adaptive adversarial weight (Esser et al. 2021, "Taming Transformers", eq. 7), and a watch on float16's range.
#pragma once
#include <cstdint>

#include "src/config/visitor.h"
#include "src/models/patch_discriminator.h"
#include "src/tensor/optim.h"
#include "src/tensor/tensor.h"
#include "trainers/perceptual.h"

namespace fewstep {

struct AdversarialConfig {
  double weight = 0.0;              // 0: none
  double start = 0.4;               // share of the steps before it begins
  models::PatchDiscriminatorConfig discriminator;
  OptimizerConfig optimizer;
};
void describe(config::Visitor& v, AdversarialConfig& c);

struct AdaptiveAdversarialConfig : AdversarialConfig {
  bool adaptive = true;             // `weight` times adaptive_weight(), else `weight` alone
};
void describe(config::Visitor& v, AdaptiveAdversarialConfig& c);

// Negative log-likelihood of a Laplace law with a learnt scale, summed over pixels and images:
//   sum (|x - target| + perceptual) / exp(logvar) + logvar,
// `perceptual`: an image's distance times its weight, added to each of its pixels; given as the sum over images, or undefined.
Tensor laplace_nll(const Tensor& x, const Tensor& target, const Tensor& perceptual, const Tensor& logvar);

// |grad nll| / (|grad generator| + 1e-4), within [0, 1e4]; both gradients at the decoder's last layer.
double adaptive_weight(double nll_norm, double generator_norm);

// Activations against the largest float16 (65504): a decoder that stays below runs in float16 as it is.
struct RangeConfig {
  int64_t every = 10;               // steps between measurements; 0: none
  double limit = 65504;
  double penalty = 0;               // weight of the squared excess; 0: none
  double penalty_from = 0.25;       // share of the limit from which activations count as excess
};
void describe(config::Visitor& v, RangeConfig& c);

struct ActivationRange {
  Tensor largest;                   // max |a| over all activations, without gradient
  Tensor above;                     // number with |a| > limit
  double count = 0;                 // of activations
  Tensor excess;                    // sum of relu(|a| / limit - penalty_from)^2, with gradient; undefined without penalty
};
// Of the decoder's activations, tapped as "decoder.*".
ActivationRange activation_range(const TensorMap& taps, const RangeConfig& config);

}  // namespace fewstep
