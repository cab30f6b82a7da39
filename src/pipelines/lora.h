// A LoRA file laid over the network of a loaded pipeline.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "src/pipelines/diffusion_model.h"

namespace fewstep::pipelines {

// What the file says about the student it makes ("distill.*"); no steps: nothing.
struct TrainedSampling {
  int64_t steps = 0;
  std::vector<double> timesteps = {}, sigmas = {};
  std::string sampler = {};
  double guidance = 1;
};

class MergedLora {
 public:
  // Reads `path` (models::find_lora) and adds `scale` times its change to the weights of model.unet, which get memory of their
  // own: merging costs nothing while sampling, and is undone by loading the model again. A scheduler that came with the file
  // becomes the model's. DataError, ConfigError: models::read_lora; a scheduler that predicts something else.
  MergedLora(DiffusionModel& model, const std::string& path, double scale);

  const std::string& path() const { return path_; }
  double scale() const { return scale_; }
  int64_t layers() const { return layers_; }
  const TrainedSampling& trained() const { return trained_; }
  // "" or how this sampling differs from what the student was trained for, and the keys that put it right.
  std::string differs(const diffusion::SamplingPlan& plan, diffusion::SamplerKind sampler, double guidance) const;

 private:
  std::string path_;
  double scale_;
  int64_t layers_ = 0;
  TrainedSampling trained_ = {};
};

}  // namespace fewstep::pipelines
