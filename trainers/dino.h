// Trainer `dino`: self-distillation without labels (Caron et al. 2021, arXiv 2104.14294). A student sees crops of an image, a
// teacher (the student's moving average) the global ones; the student learns the teacher's output. The teacher's backbone is a
// DINOv2 network whose folder serves as an encoder and as a discriminator's features.
#pragma once
#include "src/models/dinov2.h"
#include "src/nn/layers.h"
#include "src/tensor/optim.h"
#include "trainers/dino_crops.h"
#include "trainers/dino_objective.h"
#include "trainers/trainer.h"
#include "trainers/tuning.h"

namespace fewstep {

// N(0, 0.02) is small beside the patches: a short training hardly gets to see where they are.
enum class PositionStart { sinusoids, random };

struct DinoBackboneConfig {
  int64_t hidden_size = 96, num_hidden_layers = 4, num_attention_heads = 4, mlp_ratio = 4, patch_size = 4;
  PositionStart positions = PositionStart::sinusoids;
};
void describe(config::Visitor& v, DinoBackboneConfig& c);

struct DinoHeadConfig {
  int64_t hidden = 256, bottleneck = 64, prototypes = 1024;
};
void describe(config::Visitor& v, DinoHeadConfig& c);

// Three linear layers with GELU between, unit length, then cosines with the prototypes: a weight-normalised linear layer of
// gain 1 without bias.
class DinoHead : public nn::Module {
 public:
  DinoHead(int64_t width, const DinoHeadConfig& c);
  Tensor operator()(const Tensor& features) const;  // [B, D] -> logits [B, K] in [-1, 1]

 protected:
  void reset(at::Generator& generator) override;    // N(0, 0.02), biases 0

 private:
  nn::Linear first_, second_, bottleneck_, last_layer_;
};

struct DinoNetwork : nn::Module {
  DinoNetwork(const models::Dinov2Config& model, const DinoHeadConfig& head_config);
  Tensor operator()(const Tensor& images) const { return head(backbone(images).pooled()); }  // [B, 3, S, S] -> [B, K]
  models::Dinov2Model backbone;
  DinoHead head;
};

struct DinoTrainerConfig : TrainerConfig {
  DinoBackboneConfig model;
  DinoHeadConfig head;
  DinoCropConfig crops;
  OptimizerConfig optimizer;
  Precision precision = Precision::float32;
  double momentum = 0.996;                  // of the teacher; rises to 1
  double student_temperature = 0.1;
  double teacher_temperature_start = 0.04, teacher_temperature = 0.07;
  int64_t teacher_warmup = 0;               // steps of that rise
  bool centring = true;
  double centre_momentum = 0.9;
  int64_t freeze_last_layer = 0;            // steps
  CollapseConfig collapse;
  int64_t knn_bank = 4096, knn_k = 20;      // labelled training images the validation's k-NN knows; 0: no k-NN

  std::string_view kind() const override { return "dino"; }
  void describe(config::Visitor& v) override;
  bool fixed(std::string_view key) const override;
  std::unique_ptr<Trainer> build(const TrainContext& context) const override;
};
std::unique_ptr<TrainerConfig> make_dino();

}  // namespace fewstep
