// Trainer `vq_tokenizer`: images to a grid of discrete codes (van den Oord et al. 2017), with a perceptual and an optional
// adversarial term (Esser et al. 2021, "Taming Transformers", eq. 4-7).
#pragma once
#include <string>

#include "src/models/vq_model.h"
#include "src/tensor/optim.h"
#include "trainers/autoencoder_objective.h"
#include "trainers/codebook.h"
#include "trainers/trainer.h"

namespace fewstep {

struct VqTokenizerConfig : TrainerConfig {
  models::VqConfig model;
  OptimizerConfig optimizer;
  CodebookConfig codebook;
  double l1_weight = 1.0, commitment_weight = 0.25;
  PerceptualConfig perceptual;
  AdversarialConfig adversarial;

  std::string_view kind() const override { return "vq_tokenizer"; }
  void describe(config::Visitor& v) override;
  std::unique_ptr<Trainer> build(const TrainContext& context) const override;
};
std::unique_ptr<TrainerConfig> make_vq_tokenizer();

}  // namespace fewstep
