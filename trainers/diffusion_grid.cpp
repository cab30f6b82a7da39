#include "trainers/diffusion_grid.h"

#include <algorithm>

#include "datasets/loader.h"
#include "src/base/error.h"
#include "src/io/image.h"
#include "src/pipelines/draw_latents.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep {
namespace {

constexpr int64_t kGridPadding = 2;

// Samples of one size, at most `count`, from the beginning of `data`.
Batch first_samples(const Dataset& data, int64_t count, uint64_t seed) {
  std::vector<int64_t> indices;
  const int64_t bucket = data.bucket_of(0);
  for (int64_t i = 0; i < data.size() && static_cast<int64_t>(indices.size()) < count; ++i)
    if (data.bucket_of(i) == bucket) indices.push_back(i);
  return load_indices(data, indices, seed);
}

struct LatentShape {
  int64_t channels, height, width;
};
LatentShape latent_shape(const Batch& batch, const pipelines::LatentSpace& space) {
  if (batch.latent_mean.defined()) return {space.channels(), batch.latent_mean.size(2), batch.latent_mean.size(3)};
  return {space.channels(), batch.images.size(2) / space.factor(), batch.images.size(3) / space.factor()};
}

// Columns of the grid: classes, or captions.
pipelines::ConditionInput column_conditions(const pipelines::DiffusionModel& model, const Batch& batch, int64_t columns) {
  pipelines::ConditionInput input;
  const auto classes = static_cast<int64_t>(model.conditioner->class_names().size());
  const int64_t count = std::min(columns, classes > 0 ? classes : batch.size());
  if (classes > 0) {
    input.labels = at::arange(count);
  } else {
    input.captions.assign(batch.captions.begin(), batch.captions.begin() + count);
    if (batch.context.defined()) input.context = batch.context.narrow(0, 0, count);
    if (batch.pooled.defined()) input.pooled = batch.pooled.narrow(0, 0, count);
  }
  const LatentShape shape = latent_shape(batch, *model.latent_space);
  const int64_t f = model.latent_space->factor();
  input.micro = pipelines::micro_rows(count, shape.height * f, shape.width * f);
  return input;
}

models::UNetConditions repeat_rows(const models::UNetConditions& c, int64_t rows) {
  models::UNetConditions out = c;
  for (int64_t i = 1; i < rows; ++i) out = pipelines::concatenate(out, c);
  return out;
}

// All of `request` in parts of `batch_size`; uint8 [N, C, H, W] on the CPU.
Tensor draw_images(const pipelines::DiffusionModel& model, const pipelines::DrawRequest& all, int64_t batch_size) {
  std::vector<Tensor> images;
  const int64_t total = all.ids.size(0);
  for (int64_t i = 0; i < total; i += batch_size) {
    const int64_t count = std::min(batch_size, total - i);
    pipelines::DrawRequest part = all;
    part.conditional = pipelines::narrow(all.conditional, i, count);
    part.unconditional = pipelines::narrow(all.unconditional, i, count);
    part.ids = all.ids.narrow(0, i, count);
    part.start = all.start.narrow(0, i, count);
    const Tensor latents = pipelines::draw_latents(*model.unet, model.schedule, model.prediction, part).latents;
    images.push_back(io::to_bytes(model.latent_space->decode(latents.to(at::kFloat)).clamp(-1, 1).to(at::kCPU)));
  }
  return at::cat(images);
}

}  // namespace

pipelines::ConditionInput condition_input(const Batch& batch) {
  pipelines::ConditionInput input;
  input.captions = batch.captions;
  input.labels = batch.labels;
  input.micro = batch.micro, input.aesthetic = batch.aesthetic;
  input.context = batch.context, input.pooled = batch.pooled;
  return input;
}

Tensor draw_grid(const pipelines::DiffusionModel& model, const SampleGridConfig& config, const diffusion::TimestepSampling& timesteps,
                 const Dataset& data, uint64_t seed) {
  const NoGrad no_grad;
  const bool refines = timesteps.max < 1;
  const Batch batch = first_samples(data, config.columns, seed);
  const LatentShape shape = latent_shape(batch, *model.latent_space);
  const pipelines::ConditionInput input = refines ? condition_input(batch) : column_conditions(model, batch, config.columns);
  const int64_t columns = input.size(), rows = refines ? 1 : config.rows, N = columns * rows;
  const Tensor like = model.unet->parameters().front().tensor;

  pipelines::ConditionInput negative = input;
  negative.aesthetic = Tensor();  // the conditioner's negative score
  pipelines::DrawRequest request;
  request.conditional = pipelines::to_device(repeat_rows((*model.conditioner)(input), rows), like.device());
  request.unconditional = pipelines::to_device(repeat_rows(model.conditioner->null(negative), rows), like.device());
  request.guidance.scale = config.guidance, request.guidance.rescale = config.guidance_rescale;
  request.sampling = config.sampling;
  request.plan = diffusion::make_plan(model.schedule, config.sampling);
  request.ids = at::arange(N), request.seed = seed;
  const Tensor noise = pipelines::initial_noise(request.ids, {shape.channels, shape.height, shape.width}, seed).to(like.options());
  request.start = noise * diffusion::initial_scale(request.plan);
  if (!refines) return io::make_grid(draw_images(model, request, config.batch_size), columns, kGridPadding, kGridPadding);

  request.plan = diffusion::refiner_part(request.plan, timesteps.max * static_cast<double>(model.schedule.config().num_train_timesteps));
  if (request.plan.steps() == 0) return {};  // too few steps to have one in the range
  const pipelines::LatentSpace& space = *model.latent_space;
  const Tensor x0 = (batch.latent_mean.defined() ? space.from_posterior(batch.latent_mean.to(like.device()), {}, {})
                                                 : space.encode(batch.images.to(like.device()))).to(like.options());
  const Tensor t = at::full({N}, request.plan.timesteps.front(), like.options().dtype(at::kDouble));
  request.start = diffusion::add_noise(model.schedule, x0, noise, t);
  const Tensor given = io::to_bytes(space.decode(x0.to(at::kFloat)).clamp(-1, 1).to(at::kCPU));
  return io::make_grid(at::cat({given, draw_images(model, request, config.batch_size)}), columns, kGridPadding, kGridPadding);
}

}  // namespace fewstep
