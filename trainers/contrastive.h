// Trainer `contrastive`: a small CLIP on images and captions (Radford et al. 2021), with graded corruptions as a side
// task. Its text-image score and its features are used in evaluation; its stages as a perceptual loss.
#pragma once
#include "src/models/contrastive.h"
#include "src/tensor/optim.h"
#include "trainers/trainer.h"

namespace fewstep {

struct ContrastiveTrainerConfig : TrainerConfig {
  models::ContrastiveConfig model;
  OptimizerConfig optimizer;
  int64_t text_vocab = 320;         // of the byte-level BPE trained on the captions
  double clean_share = 0.6;
  double corruption_weight = 5.0;
  int64_t partner_images = 4096;

  std::string_view kind() const override { return "contrastive"; }
  void describe(config::Visitor& v) override;
  std::unique_ptr<Trainer> build(const TrainContext& context) const override;
};
std::unique_ptr<TrainerConfig> make_contrastive();

}  // namespace fewstep
