// The denoising loss: mean over a sample's elements of weight(t) * distance(output - target).
#pragma once
#include <cstdint>

#include "src/diffusion/prediction.h"
#include "src/diffusion/schedule.h"

namespace fewstep::diffusion {

// Weights are defined on the error of x0 and carried over to what the network predicts, so that one name means one loss:
//              of x0          of epsilon            of v (alpha^2 + sigma^2 = 1)
//   none       -              1                     1                       (1 in the network's own form)
//   min_snr    min(SNR, g)    min(SNR, g) / SNR     min(SNR, g) / (SNR + 1) (Hang et al. 2023)
//   v_weight   SNR + 1        (SNR + 1) / SNR       1
//   eps_weight SNR            1                     SNR / (SNR + 1)
//   debiased   sqrt(SNR)      1 / sqrt(SNR)         sqrt(SNR) / (SNR + 1)   (Yu et al. 2023)
//   edm        (r^2 + d^2) / (r d)^2, r the noise ratio, d = sigma_data     (Karras et al. 2022)
enum class LossWeighting { none, min_snr, v_weight, eps_weight, debiased, edm };
// Pseudo-Huber 2c (sqrt(e^2 + c^2) - c) in place of e^2. c may follow t: exponential c^(t / T), or
// snr (1 - c) / (1 + noise ratio)^2 + c: wide for clean images, `huber_c` for noise.
enum class HuberKind { off, constant, exponential, snr };

struct DiffusionLossConfig {
  LossWeighting weighting = LossWeighting::none;
  double snr_gamma = 5.0;
  double noise_offset = 0.0;  // SDXL's third stage: 0.05
  HuberKind huber = HuberKind::off;
  double huber_c = 0.1;
};
void describe(config::Visitor& v, DiffusionLossConfig& c);

// t: [B] -> float64 [B], finite: SNR counts as at least kSmallestSnr and at most kLargestSnr.
inline constexpr double kSmallestSnr = 1e-4, kLargestSnr = 1e8;
Tensor loss_weights(const DiffusionLossConfig& config, Prediction prediction, const Schedule& schedule, const Tensor& t);

// noise + level * offset, for noise [B, C, ...] and a normal draw `offset` [B, C, 1, 1]. The result is *the* noise of the sample:
// it goes into x_t and into the target, or the network would learn to remove less than was added.
Tensor offset_noise(const Tensor& noise, const Tensor& offset_normal, double level);

// output, target: [B, ...], t: [B] -> [B] in output's type (float32 at least). Not averaged over the batch.
Tensor diffusion_loss(const DiffusionLossConfig& config, Prediction prediction, const Schedule& schedule, const Tensor& output,
                      const Tensor& target, const Tensor& t);

}  // namespace fewstep::diffusion
