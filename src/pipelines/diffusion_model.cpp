#include "src/pipelines/diffusion_model.h"

#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/json.h"
#include "src/diffusion/scheduler_config.h"
#include "src/models/model.h"
#include "src/pipelines/components.h"

namespace fewstep::pipelines {
namespace fs = std::filesystem;

void check_diffusion_parts(const models::UNet2DConfig& unet, const Conditioner& conditioner,
                           const LatentSpace& latent_space, std::string_view where) {
  const int64_t channels = latent_space.channels();
  if (unet.in_channels != channels || unet.out_channels != channels)
    fail<ConfigError>("{}: the network reads {} channels and writes {}, {} has {}; the VAE is another model's{}", where,
                      unet.in_channels, unet.out_channels, latent_space.description(), channels,
                      unet.in_channels == 9 ? " (9 channels: an inpainting network, which is not supported)" : "");
  check_conditioning(unet, conditioner, where);
}

DiffusionModel load_diffusion_model(const fs::path& folder, const LoadDiffusionOptions& options) {
  const diffusion::SchedulerConfig scheduler = diffusion::load_scheduler_config(folder / "scheduler");
  if (options.prediction && *options.prediction != scheduler.prediction)
    fail<ConfigError>(
        "{}: this network predicts '{}' (scheduler/scheduler_config.json: prediction_type), '{}' is asked for",
        folder.string(), diffusion::name_of(scheduler.prediction), diffusion::name_of(*options.prediction));
  DiffusionModel model{
      .unet = load_frozen_component<models::UNet2DConditionModel>(folder / "unet", "UNet2DConditionModel"),
      .conditioner = Conditioner::load(folder, options.device),
      .latent_space = LatentSpace::load(folder, options.device),
      .schedule = diffusion::Schedule(scheduler.schedule),
      .prediction = scheduler.prediction,
      .sampling = scheduler.sampling};
  model.unet->to(options.device);
  check_diffusion_parts(model.unet->config(), *model.conditioner, *model.latent_space, folder.string());
  model.height = model.width = model.unet->config().sample_size * model.latent_space->factor();
  return model;
}

void save_diffusion_model(const fs::path& folder, const DiffusionParts& parts) {
  check_diffusion_parts(parts.unet, parts.conditioner, parts.latent_space, folder.string());
  const diffusion::SchedulerConfig scheduler{
      .schedule = parts.schedule.config(), .prediction = parts.prediction, .sampling = parts.sampling};
  const std::string scheduler_class = diffusion::scheduler_class_of(scheduler);
  // What diffusers has a pipeline for is saved as one, so that it loads there.
  const bool known = parts.latent_space.kind() == "vae" && !scheduler_class.starts_with("Fewstep");
  std::string name = known ? parts.conditioner.diffusers_class() : "";
  if (name.empty()) name = "FewstepDiffusionPipeline";
  make_directories(folder / "scheduler");
  models::save_model(folder / "unet", parts.unet_state, parts.unet.to_json());
  diffusion::save_scheduler_config(folder / "scheduler", scheduler);
  parts.conditioner.save(folder);
  parts.latent_space.save(folder);
  Json index = {{"_class_name", name},
                {"unet", {"diffusers", "UNet2DConditionModel"}},
                {"scheduler", {"diffusers", scheduler_class}}};
  index.update(parts.latent_space.index_entries());
  index.update(parts.conditioner.index_entries());
  write_json(folder / "model_index.json", index);
}

}  // namespace fewstep::pipelines
