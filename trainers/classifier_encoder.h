// Trainer `classifier_encoder`: the judge of the embedded demo, a small convolutional classifier that must also grade
// corruptions, so that its features see texture as well as content.
#pragma once
#include "src/models/conv_encoder.h"
#include "src/tensor/optim.h"
#include "trainers/trainer.h"

namespace fewstep {

struct ClassifierEncoderConfig : TrainerConfig {
  models::ConvEncoderConfig model;
  OptimizerConfig optimizer;
  double clean_share = 0.35;        // rows left without corruption
  double corruption_weight = 5.0;   // of the graded corruptions' squared error
  double label_smoothing = 0.05;
  bool flip = true;
  int64_t crop = 0;                 // side of the random cut-outs it is trained on; 0: whole images
  int64_t partner_images = 4096;    // kept in memory for mixed pictures

  std::string_view kind() const override { return "classifier_encoder"; }
  void describe(config::Visitor& v) override;
  std::unique_ptr<Trainer> build(const TrainContext& context) const override;
};
std::unique_ptr<TrainerConfig> make_classifier_encoder();

}  // namespace fewstep
