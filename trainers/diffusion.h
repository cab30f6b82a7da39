// Trainer `diffusion`: latent diffusion models conditioned on a class or a text and on sizes (SDXL, Podell et al. 2023, arXiv
// 2307.01952), from scratch or from a checkpoint, in full or as a low-rank adapter; with flow matching, any prediction and any
// range of noise levels (the refiner's is [0, 0.2)).
#pragma once
#include <string>

#include "src/diffusion/loss.h"
#include "src/diffusion/sampling_plan.h"
#include "src/diffusion/timestep_sampling.h"
#include "src/pipelines/conditioner.h"
#include "src/tensor/optim.h"
#include "trainers/diffusion_start.h"

namespace fewstep {

// Pictures of the state: a column a class or caption, `rows` samples of each; for a model of a part of the noise levels
// held-out images above what it makes of them, noised to its noisiest level.
struct SampleGridConfig {
  diffusion::SamplingConfig sampling;  // also the scheduler of the model folder
  double guidance = 1.0, guidance_rescale = 0.0;
  int64_t columns = 10, rows = 4, batch_size = 20;
};
void describe(config::Visitor& v, SampleGridConfig& c);

// What a step does: all of it can change from stage to stage.
struct DiffusionTaskConfig {
  diffusion::TimestepSampling timesteps;
  diffusion::DiffusionLossConfig loss;
  pipelines::ConditionDropout dropout;
  bool freeze_conditioner = false;     // a class table or text encoder that could be trained
  OptimizerConfig optimizer;
  Precision precision = Precision::float32;
  bool recompute = false;
  LoraConfig lora = {.targets = {"to_q", "to_k", "to_v", "to_out.0"}};
  int64_t validation_levels = 10;      // slices of the noise axis whose loss is told apart
  SampleGridConfig sample;
};

struct DiffusionConfig : TrainerConfig {
  DiffusionStartConfig start;
  DiffusionTaskConfig task;

  std::string_view kind() const override { return "diffusion"; }
  void describe(config::Visitor& v) override;
  bool fixed(std::string_view key) const override { return of_start(key) || key == "freeze_conditioner"; }
  std::unique_ptr<Trainer> build(const TrainContext& context) const override;
};
std::unique_ptr<TrainerConfig> make_diffusion();

}  // namespace fewstep
