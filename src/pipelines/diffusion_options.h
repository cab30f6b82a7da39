// How a diffusion model is sampled: the keys of GenerateOptions that autoregressive models do not have.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "src/config/visitor.h"
#include "src/diffusion/sampling_plan.h"
#include "src/pipelines/conditioner.h"

namespace fewstep::pipelines {

// Values of diffusion::SamplerKind and diffusion::Spacing, or the checkpoint's own.
enum class SamplerChoice : int { checkpoint = -1 };
enum class SpacingChoice : int { checkpoint = -1 };

struct DiffusionOptions {
  SamplerChoice sampler = SamplerChoice::checkpoint;
  SpacingChoice spacing = SpacingChoice::checkpoint;
  int64_t steps = 50;                  // key sampling_steps; `steps` are noise levels of decoder sjd2
  std::vector<double> timesteps = {};  // exactly these instead
  double eta = 0;
  double guidance_rescale = 0, guidance_from = 0, guidance_to = 1;
  NullScope unconditional = NullScope::text;
  std::string negative_prompt = {};
  int64_t height = 0, width = 0;                                         // pixels; 0: the model's
  std::vector<int64_t> original_size = {}, crop = {}, target_size = {};  // two numbers each, or none
  double aesthetic = 0, negative_aesthetic = 0;                          // 0: the model's
  std::string init_image = {};                                           // a file
  double strength = 0.3;
  std::string refiner = {};  // a run or model folder
  double handover = 0.8;
  std::string lora = {};  // a LoRA file, a folder with one, a run with an adapter
  double lora_scale = 1;

  // The checkpoint's scheduler with what is chosen here.
  diffusion::SamplingConfig sampling(const diffusion::SamplingConfig& checkpoint) const;
};
void describe(config::Visitor& v, DiffusionOptions& c);

}  // namespace fewstep::pipelines
