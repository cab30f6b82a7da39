// The loss of a diffusion model on images it never saw, at fixed noise, by noise level: what a training validates, for
// finished models of different trainings side by side.
#pragma once
#include <map>
#include <string>
#include <string_view>

#include "eval/metric.h"
#include "src/pipelines/pipeline.h"

namespace fewstep { class Dataset; }

namespace fewstep::eval {

inline constexpr std::string_view kHeldoutLoss = "heldout_loss";
inline bool is_model_metric(std::string_view name) { return name == kHeldoutLoss; }

// heldout_loss[t=0-0.25] ... of up to `count` samples of `data`, each once in every quarter of the noise axis:
// diffusion::fixed_noise_loss, which trainings validate too, of the posterior's mean, keyed by (seed, sample id). Numbers of
// two models compare when they predict the same thing. ConfigError when the pipeline is no diffusion model.
std::map<std::string, Value> heldout_loss(const pipelines::Pipeline& pipeline, const Dataset& data, int64_t count, uint64_t seed);

}  // namespace fewstep::eval
