#include "trainers/adversarial_losses.h"

#include "src/base/error.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep {
namespace {

constexpr config::Choice kAdversarialLosses[] = {{"hinge", static_cast<int>(AdversarialLoss::hinge)},
                                                 {"non_saturating", static_cast<int>(AdversarialLoss::non_saturating)}};

Tensor mean_of_sample(const Tensor& values) { return values.flatten(1).mean(1); }

// Half precision would round what is near the margin.
Tensor wide_logits(const Tensor& logits) {
  FEW_CHECK(logits.dim() >= 2, "logits of {} dimensions, expected [B, ...]", logits.dim());
  return logits.scalar_type() == at::kDouble ? logits : logits.to(at::kFloat);
}

}  // namespace

std::span<const config::Choice> adversarial_losses() { return kAdversarialLosses; }

Tensor critic_real_loss(AdversarialLoss kind, const Tensor& logits) {
  const Tensor d = wide_logits(logits);
  return mean_of_sample(kind == AdversarialLoss::hinge ? at::relu(1 - d) : at::softplus(-d));
}

Tensor critic_fake_loss(AdversarialLoss kind, const Tensor& logits) {
  const Tensor d = wide_logits(logits);
  return mean_of_sample(kind == AdversarialLoss::hinge ? at::relu(1 + d) : at::softplus(d));
}

Tensor generator_loss(AdversarialLoss kind, const Tensor& logits) {
  const Tensor d = wide_logits(logits);
  return mean_of_sample(kind == AdversarialLoss::hinge ? -d : at::softplus(-d));
}

Tensor approximate_r1(const Critic& critic, const CriticInput& input, const Tensor& perturbation, double alpha, const Tensor& logits) {
  if (!(alpha > 0)) fail<ConfigError>("approximate R1: the perturbation's size {} must be positive", alpha);
  FEW_CHECK(perturbation.sizes() == input.x0.sizes(), "approximate R1: the perturbation's shape is not that of x0");
  const Tensor here = logits.defined() ? logits : critic(input);
  const Tensor there = critic({.x0 = input.x0 + alpha * perturbation, .t = input.t, .noise = input.noise});
  return mean_of_sample((wide_logits(here) - wide_logits(there)).square());
}

std::optional<double> CriticAccuracy::share() const {
  if (samples == 0) return std::nullopt;
  return right / static_cast<double>(samples);
}

CriticAccuracy& CriticAccuracy::operator+=(const CriticAccuracy& other) {
  right += other.right, samples += other.samples;
  return *this;
}

CriticAccuracy critic_accuracy(const Tensor& logits, bool positive_is_right) {
  if (!logits.defined() || logits.size(0) == 0) return {};
  const NoGrad no_grad;
  const Tensor right = positive_is_right ? logits.gt(0) : logits.lt(0);
  return {.right = right.to(at::kDouble).flatten(1).mean(1).sum().item<double>(), .samples = logits.size(0)};
}

CriticAccuracies critic_accuracies(const Tensor& real, const Tensor& teacher, const Tensor& fake) {
  return {.real = critic_accuracy(real, true), .teacher = critic_accuracy(teacher, true), .fake = critic_accuracy(fake, false)};
}

}  // namespace fewstep
