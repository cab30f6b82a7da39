// What a diffusion training starts from: new networks for the data set, or a model or run folder that is fine-tuned.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "src/pipelines/diffusion_model.h"
#include "trainers/trainer.h"
#include "trainers/tuning.h"

namespace fewstep {

struct DiffusionStartConfig {
  std::string folder;  // key `start`; fine-tuning: a run or model folder (diffusers' or ours) that says everything below but `prediction`
  models::UNet2DConfig unet;
  std::unique_ptr<pipelines::LatentSpaceConfig> latents;
  std::unique_ptr<pipelines::ConditionerConfig> conditioner;
  diffusion::ScheduleConfig schedule;
  diffusion::Prediction prediction = diffusion::Prediction::epsilon;
  std::vector<std::string> add_numbers;  // with `start`: groups of numbers it was not told
};
void describe_start(config::Visitor& v, DiffusionStartConfig& c);  // flat keys of the trainer
// Keys that stand in the start and no stage can change.
bool of_start(std::string_view key);

// The parts on the run's device, weights in `precision`, networks not frozen. ConfigError: parts that do not fit together or
// to the data; a model that predicts something else than `prediction`.
pipelines::DiffusionModel start_diffusion(const DiffusionStartConfig& config, const TrainContext& context, Precision precision);

// `model` with inputs for further groups of numbers ("aesthetic"), whose weights are zero: it computes what it did, whatever
// they say. ConfigError: unknown groups, or told already.
void tell_more(pipelines::DiffusionModel& model, const std::vector<std::string>& groups, uint64_t seed);

// DataError unless cached latents (and texts) of the data sets were made by the parts of this model.
void check_cached(const pipelines::DiffusionModel& model, const TrainContext& context);

}  // namespace fewstep
