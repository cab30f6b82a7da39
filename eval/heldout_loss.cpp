#include "eval/heldout_loss.h"

#include "datasets/dataset.h"
#include "eval/accuracy.h"
#include "src/base/error.h"
#include "src/diffusion/fixed_noise.h"
#include "src/pipelines/diffusion_pipeline.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"

namespace fewstep::eval {
namespace {

constexpr int64_t kLevels = 4, kBatch = 64;

// Per-sample losses float64 [B, levels] of one batch, each sample once in every quarter of the axis.
Tensor losses_by_level(const pipelines::DiffusionModel& model, const fewstep::Batch& batch, uint64_t seed) {
  const Tensor x0 = batch.latent_mean.defined() ? model.latent_space->from_posterior(batch.latent_mean, batch.latent_std)
                                                : model.latent_space->encode(batch.images);
  const models::UNetConditions conditions = (*model.conditioner)({.captions = batch.captions, .labels = batch.labels,
                                                                  .micro = batch.micro, .aesthetic = batch.aesthetic,
                                                                  .context = batch.context, .pooled = batch.pooled});
  const diffusion::FixedNoise fixed{.ids = batch.ids.to(at::kCPU), .seed = seed, .levels = kLevels};
  std::vector<Tensor> levels;
  for (int64_t level = 0; level < kLevels; ++level) {
    const Tensor loss = diffusion::fixed_noise_loss(model.schedule, model.prediction, fixed, at::full_like(fixed.ids, level), x0,
        [&](const Tensor& x_t, const Tensor& t) { return (*model.unet)(x_t, t, conditions); });
    levels.push_back(loss.to(at::kCPU, at::kDouble));
  }
  return at::stack(levels, 1);
}

}  // namespace

std::map<std::string, Value> heldout_loss(const pipelines::Pipeline& pipeline, const Dataset& data, int64_t count, uint64_t seed) {
  const auto* diffusion = dynamic_cast<const pipelines::DiffusionPipeline*>(&pipeline);
  if (!diffusion) fail<ConfigError>("metric {}: {}; it needs a diffusion model", kHeldoutLoss, pipeline.description());
  const NoGrad no_grad;
  at::Generator generator = generator_for(seed, Stream::eval, 3);
  const Tensor order = at::randperm(data.size(), generator, at::kLong);
  const auto buckets = data.buckets();
  const at::Device device = diffusion->model().unet->parameters().front().tensor.device();
  std::map<int64_t, std::vector<Sample>> waiting;  // by bucket: a batch has one size
  std::map<int64_t, std::vector<Tensor>> losses;
  const auto flush = [&](int64_t bucket) {
    losses[bucket].push_back(losses_by_level(diffusion->model(), collate(waiting[bucket]).to(device), seed));
    waiting[bucket].clear();
  };
  for (int64_t i = 0; i < std::min(count, data.size()); ++i) {
    const int64_t index = order[i].item<int64_t>(), bucket = data.bucket_of(index);
    waiting[bucket].push_back(data.get(index, seed, 0));
    if (static_cast<int64_t>(waiting[bucket].size()) == kBatch) flush(bucket);
  }
  for (const auto& [bucket, rest] : waiting)
    if (!rest.empty()) flush(bucket);

  std::map<std::string, Value> values;
  std::vector<Tensor> all;
  for (const auto& [bucket, parts] : losses) {
    const Tensor own = at::cat(parts);  // [n, levels]
    all.push_back(own);
    if (losses.size() > 1)
      values[fmt::format("{}[{}]", kHeldoutLoss, bucket_text(buckets[static_cast<size_t>(bucket)]))] = mean_with_interval(own.mean(1));
  }
  const Tensor together = at::cat(all);
  values[std::string(kHeldoutLoss)] = mean_with_interval(together.mean(1));
  for (int64_t level = 0; level < kLevels; ++level)
    values[fmt::format("{}[t={}-{}]", kHeldoutLoss, static_cast<double>(level) / kLevels, static_cast<double>(level + 1) / kLevels)] =
        mean_with_interval(together.select(1, level));
  return values;
}

}  // namespace fewstep::eval
