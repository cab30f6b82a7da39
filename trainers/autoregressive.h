// Trainer `autoregressive`: next-token prediction of image codes after a caption, with caption dropping for classifier-free
// guidance (Ho & Salimans 2022, arXiv 2207.12598).
#pragma once
#include <string>

#include "src/tensor/optim.h"
#include "trainers/image_token_task.h"

namespace fewstep {

struct AutoregressiveConfig : TrainerConfig {
  std::string tokenizer;            // run or model folder of a `vq_tokenizer`
  models::LlamaConfig model;
  OptimizerConfig optimizer;
  int64_t text_vocab = 320;         // of the byte-level BPE trained on the captions
  int64_t caption_length = 16;      // tokens; longer captions are cut (and counted)
  double caption_dropout = 0.1;
  Precision precision = Precision::float32;
  bool recompute = false;
  pipelines::GenerateOptions sample; // of the sample grids

  std::string_view kind() const override { return "autoregressive"; }
  void describe(config::Visitor& v) override;
  std::unique_ptr<Trainer> build(const TrainContext& context) const override;
};
std::unique_ptr<TrainerConfig> make_autoregressive();

}  // namespace fewstep
