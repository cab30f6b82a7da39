// Trainer `dmd2`: distribution matching distillation (Yin et al. 2024, arXiv 2405.14867) of a diffusion model into a student of a few
// steps, warm-started or not, with or without a GAN. One step of the loop is one iteration:
//
//   rung k, one for all ranks; x_in = the student's own steps down to k (backward simulation), from noise; no data but captions
//   x0 = student(x_in, t_k)
//   student's turn: x_t = alpha x0 + sigma eps, t ~ score;  g = (fake(x_t) - guided teacher(x_t)) / |x0 - teacher|, in x0;
//                   its gradient at x0 is g / elements, plus the GAN's
//   critic's turn:  on the same x0, detached, t ~ the whole axis: the fake score learns to denoise them, the discriminator to tell them
//
// Student and fake score start as the teacher (or the student as another one's), as copies or as adapters on one frozen base.
#pragma once
#include <string>

#include "src/diffusion/distribution_matching.h"
#include "src/tensor/optim.h"
#include "trainers/distillation.h"
#include "trainers/dmd2_monitors.h"
#include "trainers/dmd2_turns.h"
#include "trainers/feature_gan.h"
#include "trainers/trainer.h"

namespace fewstep {

struct Dmd2CriticConfig {
  TurnConfig turns;
  std::string start;                            // run folder of a dmd2 training whose fake score goes on; empty: the teacher
  diffusion::ScoreRange timesteps = {.min = 0.0, .max = 1.0};
  OptimizerConfig optimizer = {.lr = 2e-6, .beta1 = 0.0, .beta2 = 0.999, .weight_decay = 0.01, .schedule = LrSchedule::constant};
};
void describe(config::Visitor& v, Dmd2CriticConfig& c);

struct Dmd2Config : TrainerConfig {
  DistillationConfig distillation;
  double cfg_scale = 1.0;                       // of the teacher: unconditional + cfg_scale (conditional - unconditional)
  diffusion::ScoreRange score;                  // timesteps of the student's turn
  double align = 1.0;                           // implicit distribution alignment (SenseFlow): what the fake score keeps of itself
  OptimizerConfig optimizer = {.lr = 2e-6, .beta1 = 0.0, .beta2 = 0.999, .weight_decay = 0.01, .schedule = LrSchedule::constant};
  Dmd2CriticConfig critic;
  FeatureGanConfig gan;                         // without `features`: none
  Dmd2MonitorConfig monitor;

  std::string_view kind() const override { return "dmd2"; }
  void describe(config::Visitor& v) override;
  bool fixed(std::string_view key) const override;
  std::unique_ptr<Trainer> build(const TrainContext& context) const override;
};
std::unique_ptr<TrainerConfig> make_dmd2();

}  // namespace fewstep
