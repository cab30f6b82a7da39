// The adversarial part of phased consistency (Wang et al. 2024, section 4.3): a discriminator on features of the frozen teacher tells
// the student's jump from its target, both at the end of a phase and noised again to one level of the phase (renoise() of
// consistency.h). The teacher needs no second copy: its middle block is read with every adapter off.
//
// Ours differs from the published code: spectral-norm heads on the middle block instead of convolutions at four depths, and both turns
// in every step instead of one each in turns.
#pragma once
#include <map>
#include <string>

#include "src/diffusion/consistency.h"
#include "src/models/feature_discriminator.h"
#include "src/tensor/optim.h"
#include "trainers/distillation.h"
#include "trainers/trainable_set.h"

namespace fewstep {

struct PcmAdversarialConfig {
  double weight = 0.0;  // of the student's part; 0: no discriminator
  models::FeatureDiscriminatorConfig heads = {.norm = "group", .kernel = 1};
  OptimizerConfig optimizer = {.lr = 1e-5, .beta1 = 0.0, .beta2 = 0.999, .weight_decay = 1e-3, .schedule = LrSchedule::constant};
  bool on() const { return weight > 0.0; }
};
void describe(config::Visitor& v, PcmAdversarialConfig& c);

// What one micro-batch was jumped with.
struct PhaseBatch {
  Tensor ids;                               // int64 [B], CPU
  Tensor i;                                 // int64 [B], points of the grid
  const models::UNetConditions& conditions;
  StepContext at = {};
};

class PcmAdversary {
 public:
  PcmAdversary(const PcmAdversarialConfig& config, const Distillation& distillation, const diffusion::SolverGrid& grid, const TrainContext& context);

  // [B], weighted: mean over logits of relu(1 - D(online)), as published. Gradients reach `online` and nothing else.
  Tensor student_loss(const Tensor& online, const PhaseBatch& on) const;
  // Adds the gradients of relu(1 + D(online)) + relu(1 - D(target)) to the heads.
  void critic_turn(const Tensor& online, const Tensor& target, const PhaseBatch& on, bool last, Metrics& metrics);
  void step(int64_t step, Metrics& metrics);

  void add_state(std::map<std::string, TensorMap>& files) const;  // heads with their spectral-norm vectors, optimiser
  void load_state(const std::map<std::string, TensorMap>& files);
  nn::Module& heads() { return heads_; }

 private:
  enum class Side : int64_t { student, target };
  Tensor logits(const Tensor& x, Side side, const PhaseBatch& on) const;  // [B, h w]

  const PcmAdversarialConfig config_;
  const Distillation& distillation_;
  const diffusion::SolverGrid& grid_;
  const TrainContext context_;
  mutable models::FeatureDiscriminator heads_;
  TrainableSet set_;
};

}  // namespace fewstep
