// Trainer `autoencoder`: the VAE of latent diffusion (Rombach et al. 2021, arXiv 2112.10752; SDXL, arXiv 2307.01952, section
// 2.4): L1 and perceptual likelihood with a learnt or fixed scale, KL, and a PatchGAN with an adaptive weight.
#pragma once
#include <string>

#include "src/models/autoencoder_kl.h"
#include "src/tensor/optim.h"
#include "trainers/autoencoder_objective.h"
#include "trainers/trainer.h"
#include "trainers/tuning.h"

namespace fewstep {

// What the latents' statistics become in the saved config.json.
enum class LatentScaling {
  global,   // scaling_factor = 1 / deviation over everything, as SD and SDXL
  channels  // latents_mean and latents_std, a value a channel
};

struct AutoencoderConfig : TrainerConfig {
  models::AutoencoderKlConfig model;
  std::string init;                  // run or model folder to go on from; empty: random weights
  OptimizerConfig optimizer;
  Precision precision = Precision::float32;
  bool recompute = false;
  double kl_weight = 1e-6;           // of the KL in nats, beside the likelihood summed over pixels
  double logvar = 0;                 // log of the likelihood's scale
  bool learn_logvar = false;
  PerceptualConfig perceptual;
  AdaptiveAdversarialConfig adversarial;
  RangeConfig range;
  LatentScaling scaling = LatentScaling::global;
  int64_t latent_samples = 1024;     // training images the latents' statistics are measured on

  std::string_view kind() const override { return "autoencoder"; }
  void describe(config::Visitor& v) override;
  std::unique_ptr<Trainer> build(const TrainContext& context) const override;
};
std::unique_ptr<TrainerConfig> make_autoencoder();

// Mean and variance of latents drawn from posteriors of `images` (float64 [Z] each, on the CPU): the variance is that of the
// means plus the mean of the posteriors' own, so nothing is drawn.
struct LatentMoments {
  Tensor mean, variance;
};
LatentMoments measure_latents(const models::AutoencoderKL& model, const Tensor& images);
// `config` with what scale() needs for latents of deviation 1. Global: over all channels about the common mean; shift_factor
// stays 0 as in SD and SDXL.
models::AutoencoderKlConfig with_scaling(models::AutoencoderKlConfig config, const LatentMoments& moments, LatentScaling scaling);

}  // namespace fewstep
