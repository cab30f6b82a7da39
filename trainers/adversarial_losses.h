// Adversarial losses sample by sample, so that their sums can be divided by global counts and weighed (by noise level, by the
// share of real and teacher images). logits [B, ...] -> float [B]: the mean over a sample's logits.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string_view>

#include "src/config/visitor.h"
#include "src/tensor/tensor.h"

namespace fewstep {

enum class AdversarialLoss : int { hinge, non_saturating };
std::span<const config::Choice> adversarial_losses();  // names for describe()

// hinge (Lim & Ye 2017): real relu(1 - D), fake relu(1 + D), generator -D.
// non_saturating (Goodfellow et al. 2014): real softplus(-D), fake softplus(D), generator softplus(-D).
Tensor critic_real_loss(AdversarialLoss kind, const Tensor& logits);
Tensor critic_fake_loss(AdversarialLoss kind, const Tensor& logits);
Tensor generator_loss(AdversarialLoss kind, const Tensor& logits);

// What a critic of noised samples scores: it makes x_t from these itself. A critic of clean images ignores t and noise.
struct CriticInput {
  Tensor x0;     // [B, ...]
  Tensor t;      // [B], or undefined
  Tensor noise;  // as x0, or undefined
};
using Critic = std::function<Tensor(const CriticInput&)>;  // -> logits [B, ...]

// Approximate R1 (Lin et al. 2025, arXiv 2501.08316): (D(x) - D(x + alpha n))^2, to be weighed by lambda; [B]. x0 is perturbed
// first and both branches get the same t and noise: otherwise the difference would measure the noise, not the slope.
// For small alpha its expectation is alpha^2 |grad D|^2 (n ~ N(0, 1)). `logits`: D(input) of this step, if it is there already
// (its gradient is used too). Error when alpha is not positive.
Tensor approximate_r1(const Critic& critic, const CriticInput& input, const Tensor& perturbation, double alpha,
                      const Tensor& logits = {});

// Share of logits on the right side of 0 (exactly 0 counts as wrong), each sample one vote: sums for global means.
struct CriticAccuracy {
  double right = 0;
  int64_t samples = 0;
  std::optional<double> share() const;  // nothing without samples
  CriticAccuracy& operator+=(const CriticAccuracy& other);
};
struct CriticAccuracies {  // kept apart: a critic that tells only teacher images from the student's shows here
  CriticAccuracy real = {}, teacher = {}, fake = {};
};
CriticAccuracy critic_accuracy(const Tensor& logits, bool positive_is_right);
// Any of the three may be undefined.
CriticAccuracies critic_accuracies(const Tensor& real, const Tensor& teacher, const Tensor& fake);

}  // namespace fewstep
