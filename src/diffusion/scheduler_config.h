// scheduler_config.json of diffusers, both ways: DDPMScheduler, DDIMScheduler, EulerDiscreteScheduler,
// EulerAncestralDiscreteScheduler, HeunDiscreteScheduler, DPMSolverMultistepScheduler, LCMScheduler,
// FlowMatchEulerDiscreteScheduler. Ours for EDM: FewstepEDMScheduler.
#pragma once
#include <filesystem>
#include <string>
#include <string_view>

#include "src/base/json.h"
#include "src/diffusion/prediction.h"
#include "src/diffusion/sampling_plan.h"

namespace fewstep::diffusion {

struct SchedulerConfig {
  ScheduleConfig schedule = {};
  Prediction prediction = Prediction::epsilon;
  SamplingConfig sampling = {};  // sampler, spacing, ...; steps and eta are not part of diffusers' file and keep their defaults
};

// ConfigError: unknown class, and keys of the class that we do not compute with a value other than its default, by name.
// Keys that the class does not know are ignored, as in diffusers (released SDXL models have some).
SchedulerConfig read_scheduler_config(const Json& json, std::string_view where);
SchedulerConfig load_scheduler_config(const std::filesystem::path& folder);  // folder/scheduler_config.json

// ConfigError where no class of diffusers does the same (for example flow with ddpm): called at the start of a training, too.
Json scheduler_json(const SchedulerConfig& config);
// With the spacing, offset and end that suit the sampler best: trailing where it exists, leading + 1 for SDXL's Euler default.
Json scheduler_json(const ScheduleConfig& schedule, Prediction prediction, SamplerKind sampler);
void save_scheduler_config(const std::filesystem::path& folder, const SchedulerConfig& config);
std::string scheduler_class_of(const SchedulerConfig& config);  // "EulerDiscreteScheduler", for model_index.json

}  // namespace fewstep::diffusion
