#include "src/pipelines/lora.h"

#include <fmt/ranges.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/log.h"
#include "src/diffusion/scheduler_config.h"
#include "src/models/lora_files.h"
#include "src/tensor/ops.h"

namespace fewstep::pipelines {
namespace {

constexpr double kTrainedLevelTolerance = 1e-3;

TrainedSampling trained_sampling(const std::map<std::string, std::string>& metadata) {
  const auto value = [&](const char* key) {
    const auto it = metadata.find(std::string("distill.") + key);
    return it == metadata.end() ? Json() : Json::parse(it->second, nullptr, false);
  };
  const auto numbers = [&](const char* key) {
    std::vector<double> out;
    if (const Json list = value(key); list.is_array())
      for (const Json& x : list)
        if (x.is_number()) out.push_back(x.get<double>());
    return out;
  };
  TrainedSampling out{.steps = 0, .timesteps = numbers("timesteps"), .sigmas = numbers("sigmas"), .sampler = {}, .guidance = 1};
  out.steps = static_cast<int64_t>(out.timesteps.size());
  if (const Json cfg = value("cfg"); cfg.is_number()) out.guidance = cfg.get<double>();
  if (const auto it = metadata.find("distill.sampler"); it != metadata.end()) out.sampler = it->second;
  return out;
}

std::vector<std::string> unet_layers(const models::UNet2DConditionModel& unet) {
  std::vector<std::string> names;
  for (const NamedTensor& t : unet.state()) names.push_back(t.name);
  return models::layers_with_weights(names);
}

// Without noise afresh, these are one sampler on equal levels.
bool same_sampler(std::string_view a, std::string_view b) {
  const auto ode = [](std::string_view s) { return s == "ddim" || s == "euler" || s == "flow_euler"; };
  return a == b || (ode(a) && ode(b));
}

}  // namespace

MergedLora::MergedLora(DiffusionModel& model, const std::string& path, double scale) : path_(path), scale_(scale) {
  const models::LoraNames names("unet", unet_layers(*model.unet), "the network");
  const models::LoraFile file = models::read_lora(path, names);
  const TensorMap weights = models::with_lora(*model.unet, file.layers, scale, file.path.string());
  if (!file.scheduler.empty()) {
    const diffusion::SchedulerConfig scheduler = diffusion::load_scheduler_config(file.scheduler);
    if (scheduler.prediction != model.prediction)
      fail<ConfigError>("lora: {}: its scheduler predicts '{}', the network '{}': it is a LoRA of another model", file.scheduler.string(),
                        diffusion::name_of(scheduler.prediction), diffusion::name_of(model.prediction));
    model.schedule = diffusion::Schedule(scheduler.schedule);
    model.sampling = scheduler.sampling;
  }
  // The weights may be mapped files, which are read-only: what has changed is new memory, the rest stays where it is.
  model.unet->load(weights, file.path.string(), {.allow_missing = {}, .allow_extra = {}, .zero_copy = true});
  layers_ = static_cast<int64_t>(file.layers.size());
  trained_ = trained_sampling(file.metadata);
  log::info("{}: LoRA of rank {} on {} of the network's {} layers with weights, strength {}{}", file.path.string(), file.layers.begin()->second.rank(), layers_,
            unet_layers(*model.unet).size(), scale, file.scheduler.empty() ? "" : "; sampled with its own scheduler");
}

std::string MergedLora::differs(const diffusion::SamplingPlan& plan, diffusion::SamplerKind sampler, double guidance) const {
  if (trained_.steps == 0) return {};
  bool same = plan.steps() == trained_.steps && (trained_.sampler.empty() || same_sampler(trained_.sampler, diffusion::name_of(sampler)));
  for (size_t k = 0; same && k < static_cast<size_t>(trained_.steps); ++k) {
    same = k >= trained_.sigmas.size() || std::abs(plan.sigmas[k] - trained_.sigmas[k]) <= kTrainedLevelTolerance;
    same = same && std::abs(plan.timesteps[k] - trained_.timesteps[k]) <= 1.0;
  }
  std::string out;
  if (!same)
    out = fmt::format("its student was trained at timesteps [{:g}] for sampler {}, and is sampled at [{:g}] with {}: sampler={} timesteps=[{:g}]",
                      fmt::join(trained_.timesteps, ", "), trained_.sampler, fmt::join(plan.timesteps, ", "), diffusion::name_of(sampler), trained_.sampler,
                      fmt::join(trained_.timesteps, ","));
  if (guidance != trained_.guidance)
    out += fmt::format("{}its student was trained for guidance {:g}, and is sampled with {:g}", out.empty() ? "" : "; ", trained_.guidance, guidance);
  return out;
}

}  // namespace fewstep::pipelines
