// Trainer `pcm`: phased consistency (Wang et al. 2024, arXiv 2405.18407). A diffusion model is distilled into a student of as many
// steps as there are phases, deterministic in each; a warm start for distribution matching, or a student by itself.
//   data -> noised to a point of the solver's grid -> the student's jump to the phase's end there, and one guided step of the teacher
//   further on: both must be one. The equations: src/diffusion/consistency.h
#pragma once
#include <string>

#include "src/diffusion/consistency.h"
#include "src/tensor/optim.h"
#include "trainers/distillation.h"
#include "trainers/pcm_adversarial.h"

namespace fewstep {

struct PcmConfig : TrainerConfig {
  DistillationConfig distillation;
  diffusion::ConsistencyConfig consistency;
  OptimizerConfig optimizer = {.lr = 5e-6, .beta1 = 0.9, .beta2 = 0.999, .weight_decay = 1e-3, .schedule = LrSchedule::constant};
  PcmAdversarialConfig adversarial;       // without weight: none
  double validation_trajectories = 0.05;  // share of the validation samples drawn by the teacher, too

  PcmConfig() { distillation.student.student = diffusion::StudentKind::ode; }
  std::string_view kind() const override { return "pcm"; }
  void describe(config::Visitor& v) override;
  bool fixed(std::string_view key) const override { return of_distillation(key); }
  std::unique_ptr<Trainer> build(const TrainContext& context) const override;
};
std::unique_ptr<TrainerConfig> make_pcm();

}  // namespace fewstep
