// The parts of a diffusion model and their folder. diffusers' folders of SDXL, its refiner and Stable Diffusion 1.x
// load as they are; ours have the same components, and conditioner/ and latent_space/ where diffusers has no word for
// them.
#pragma once
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "src/diffusion/prediction.h"
#include "src/diffusion/sampling_plan.h"
#include "src/diffusion/schedule.h"
#include "src/models/unet2d.h"
#include "src/pipelines/conditioner.h"
#include "src/pipelines/latent_space.h"

namespace fewstep::pipelines {

struct DiffusionModel {
  std::unique_ptr<models::UNet2DConditionModel> unet;
  std::unique_ptr<Conditioner> conditioner;
  std::unique_ptr<LatentSpace> latent_space;
  diffusion::Schedule schedule;
  diffusion::Prediction prediction;
  diffusion::SamplingConfig sampling;  // of the checkpoint's scheduler
  int64_t height = 0, width = 0;       // pixels it was trained for (unet.sample_size x factor); 0: not known
};

struct LoadDiffusionOptions {
  at::Device device = at::kCPU;
  std::optional<diffusion::Prediction> prediction = {};  // ConfigError when the checkpoint predicts something else
};
// `folder` holds model_index.json. The network is in eval mode, on `device`, without gradients.
DiffusionModel load_diffusion_model(const std::filesystem::path& folder, const LoadDiffusionOptions& options = {});

struct DiffusionParts {  // what save_diffusion_model writes; borrowed
  const models::UNet2DConfig& unet;
  const TensorMap& unet_state;  // module.state() as a map, or nn::merged_state() of an adapter
  const Conditioner& conditioner;
  const LatentSpace& latent_space;
  const diffusion::Schedule& schedule;
  diffusion::Prediction prediction;
  diffusion::SamplingConfig sampling;
};
void save_diffusion_model(const std::filesystem::path& folder, const DiffusionParts& parts);
// ConfigError unless network, latents and conditions fit together; load and save call it.
void check_diffusion_parts(const models::UNet2DConfig& unet, const Conditioner& conditioner,
                           const LatentSpace& latent_space, std::string_view where);

}  // namespace fewstep::pipelines
