// Trainer `next_clean_token`: fine-tunes an autoregressive image model to predict clean tokens behind noisy ones (SJD2, arXiv
// 2510.08994), so that a decoder may start from noise and denoise many positions at once.
#pragma once
#include <string>

#include "src/models/embedding_noise.h"
#include "src/tensor/optim.h"
#include "trainers/anisotropy.h"
#include "trainers/image_token_task.h"
#include "trainers/noise_layout.h"

namespace fewstep {

struct NextCleanTokenConfig : TrainerConfig {
  std::string model;                // run or model folder of the trainer `autoregressive`: start weights, tokenizers, layout
  models::EmbeddingNoiseConfig noise;
  NoiseLayoutConfig layout;
  bool noisy = true;                // false: as many steps of plain next-token prediction, the control
  bool freeze_embeddings = true;    // the table (and embed_affine) stay: noise statistics hold to the end
  OptimizerConfig optimizer;
  double caption_dropout = 0.1;
  Precision precision = Precision::float32;
  bool recompute = false;
  LoraConfig lora = {.targets = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}};
  AnisotropyConfig anisotropy;
  pipelines::GenerateOptions sample;  // of the sample grids

  std::string_view kind() const override { return "next_clean_token"; }
  void describe(config::Visitor& v) override;
  std::unique_ptr<Trainer> build(const TrainContext& context) const override;
};
std::unique_ptr<TrainerConfig> make_next_clean_token();

}  // namespace fewstep
