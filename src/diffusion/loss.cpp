#include "src/diffusion/loss.h"

#include <cmath>

#include "src/base/error.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::diffusion {
namespace {

constexpr config::Choice kWeightings[] = {{"none", static_cast<int>(LossWeighting::none)},
                                          {"min_snr", static_cast<int>(LossWeighting::min_snr)},
                                          {"v_weight", static_cast<int>(LossWeighting::v_weight)},
                                          {"eps_weight", static_cast<int>(LossWeighting::eps_weight)},
                                          {"debiased", static_cast<int>(LossWeighting::debiased)},
                                          {"edm", static_cast<int>(LossWeighting::edm)}};
constexpr config::Choice kHubers[] = {{"off", static_cast<int>(HuberKind::off)},
                                      {"constant", static_cast<int>(HuberKind::constant)},
                                      {"exponential", static_cast<int>(HuberKind::exponential)},
                                      {"snr", static_cast<int>(HuberKind::snr)}};

// (error of x0 / error of the prediction)^2, divided by that of epsilon, which is 1 / SNR: so that no quotient runs away when the
// weight of x0 is SNR times something tame.
Tensor relative_to_epsilon(Prediction prediction, const Tensor& alpha, const Tensor& sigma, const Tensor& snr) {
  switch (prediction) {
    case Prediction::epsilon: return at::ones_like(snr);
    case Prediction::sample: return snr;
    case Prediction::v_prediction: return (alpha / (alpha.square() + sigma.square())).square();
    case Prediction::flow: return (alpha / (alpha + sigma)).square();
  }
  fail("unknown prediction {}", static_cast<int>(prediction));
}

Tensor clamped_snr(const Schedule& schedule, const Tensor& t) { return schedule.snr(t).clamp(kSmallestSnr, kLargestSnr); }

// The weight of epsilon's squared error.
Tensor weight_of_epsilon(const DiffusionLossConfig& config, const Schedule& schedule, const Tensor& snr) {
  switch (config.weighting) {
    case LossWeighting::none:
    case LossWeighting::eps_weight: return at::ones_like(snr);
    case LossWeighting::min_snr: return (config.snr_gamma / snr).clamp_max(1.0);
    case LossWeighting::v_weight: return (snr + 1.0) / snr;
    case LossWeighting::debiased: return snr.rsqrt();
    case LossWeighting::edm: {
      const double data = schedule.config().kind == ScheduleKind::edm ? schedule.config().sigma_data : 1.0;
      return (snr.reciprocal() + data * data) / (data * data);  // (r^2 + d^2) / (r d)^2 * r^2
    }
  }
  fail("unknown weighting {}", static_cast<int>(config.weighting));
}

// [B] the width c at every sample's t.
Tensor huber_width(const DiffusionLossConfig& config, const Schedule& schedule, const Tensor& t) {
  const Tensor time = t.to(at::kDouble);
  if (config.huber == HuberKind::exponential)
    return (time * (std::log(config.huber_c) / static_cast<double>(schedule.config().num_train_timesteps))).exp();
  if (config.huber == HuberKind::snr)
    return (1.0 - config.huber_c) / (clamped_snr(schedule, t).rsqrt() + 1.0).square() + config.huber_c;
  return at::full_like(time, config.huber_c);
}

}  // namespace

void describe(config::Visitor& v, DiffusionLossConfig& c) {
  v.field("weighting", c.weighting, "of the squared error over t; the same name is the same loss for every prediction", kWeightings);
  v.field("snr_gamma", c.snr_gamma, "min_snr: the largest SNR that still counts", config::kPositive);
  v.field("noise_offset", c.noise_offset, "one more normal number per sample and channel in the noise, times this (SDXL: 0.05)",
          config::kNonNegative);
  v.field("huber", c.huber, "pseudo-Huber in place of the square; its width follows t, or not", kHubers);
  v.field("huber_c", c.huber_c, "width of the pseudo-Huber (exponential, snr: at pure noise)", config::kPositive);
}

Tensor loss_weights(const DiffusionLossConfig& config, Prediction prediction, const Schedule& schedule, const Tensor& t) {
  const Tensor snr = clamped_snr(schedule, t);
  if (config.weighting == LossWeighting::none) return at::ones_like(snr);
  if (config.weighting == LossWeighting::v_weight && prediction == Prediction::v_prediction) return at::ones_like(snr);
  if (prediction == Prediction::v_prediction || prediction == Prediction::flow) {
    // With alpha^2 = SNR sigma^2 clamped alike, so that products such as (SNR + 1) / SNR * alpha^2 stay what they are.
    const Tensor ratio = snr.rsqrt(), one = at::ones_like(snr);
    const Tensor sum = schedule.sigma(t).square() + schedule.alpha(t).square();
    const Tensor alpha = sum.sqrt() * (ratio.square() + 1.0).rsqrt(), sigma = alpha * ratio;
    return weight_of_epsilon(config, schedule, snr) * relative_to_epsilon(prediction, alpha, sigma, snr);
  }
  return weight_of_epsilon(config, schedule, snr) * relative_to_epsilon(prediction, {}, {}, snr);
}

Tensor offset_noise(const Tensor& noise, const Tensor& offset_normal, double level) {
  FEW_CHECK(noise.dim() == offset_normal.dim() && noise.size(0) == offset_normal.size(0) && noise.size(1) == offset_normal.size(1) &&
                offset_normal.numel() == noise.size(0) * noise.size(1),
            "noise offset: one number per sample and channel, got {} for {} x {}", offset_normal.numel(), noise.size(0), noise.size(1));
  return level == 0.0 ? noise : noise + level * offset_normal;
}

Tensor diffusion_loss(const DiffusionLossConfig& config, Prediction prediction, const Schedule& schedule, const Tensor& output,
                      const Tensor& target, const Tensor& t) {
  FEW_CHECK(output.sizes() == target.sizes() && t.dim() == 1 && t.size(0) == output.size(0),
            "diffusion loss: output of {} values, target of {}, {} timesteps", output.numel(), target.numel(), t.numel());
  const auto type = output.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const Tensor error = output.to(type) - target.to(type);
  Tensor distance = error.square();
  if (config.huber != HuberKind::off) {
    const Tensor c = append_dims(huber_width(config, schedule, t).to(error.device(), type), error.dim());
    distance = 2.0 * c * ((distance + c.square()).sqrt() - c);
  }
  const Tensor mean = distance.flatten(1).mean(1);  // [B]
  if (config.weighting == LossWeighting::none) return mean;
  return mean * loss_weights(config, prediction, schedule, t).to(mean.device(), type);
}

}  // namespace fewstep::diffusion
