// Pictures of a distillation: the teacher's sample, and under it what the student makes of the same noise, rung by rung.
#include <algorithm>

#include "datasets/loader.h"
#include "src/diffusion/distribution_matching.h"
#include "src/io/image.h"
#include "src/nn/lora.h"
#include "src/pipelines/draw_latents.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "trainers/distillation.h"

namespace fewstep {
namespace {

constexpr int64_t kPictureGap = 2;

// `count` samples of one size from the beginning of `data`; for a model of classes one of each, seen as whole images.
Batch picture_columns(const Dataset& data, int64_t count, const pipelines::DiffusionModel& model, uint64_t seed) {
  const auto classes = static_cast<int64_t>(model.conditioner->class_names().size());
  if (classes > 0) count = std::min(count, classes);
  std::vector<int64_t> indices;
  const int64_t bucket = data.bucket_of(0);
  for (int64_t i = 0; i < data.size() && static_cast<int64_t>(indices.size()) < count; ++i)
    if (data.bucket_of(i) == bucket) indices.push_back(i);
  Batch batch = load_indices(data, indices, seed);
  const int64_t N = batch.size(), f = model.latent_space->factor();
  if (classes > 0) batch.labels = at::arange(N).remainder(classes);
  const bool cached = batch.latent_mean.defined();
  const int64_t height = cached ? batch.latent_mean.size(2) * f : batch.images.size(2), width = cached ? batch.latent_mean.size(3) * f : batch.images.size(3);
  batch.micro = pipelines::micro_rows(N, height, width);
  batch.aesthetic = Tensor();
  return batch;
}

Tensor rows_of_pictures(const pipelines::LatentSpace& space, const Tensor& latents) {
  return io::to_bytes(space.decode(latents.to(at::kFloat)).clamp(-1, 1).to(at::kCPU));
}

}  // namespace

std::vector<Tensor> Distillation::student_x0(const models::UNetConditions& conditions, const Tensor& x_T,
                                             const diffusion::NoiseSource& noise) const {
  const NoGrad no_grad;
  std::vector<Tensor> out;
  const auto network = [&](const Tensor& x, double timestep) {
    const auto k = static_cast<int64_t>(out.size());
    const Tensor one = at::ones({x.size(0)}, x.options().dtype(at::kDouble));
    const Tensor output = (*student_)(x, one * timestep, conditions);
    out.push_back(diffusion::predicted_x0(model_.prediction, output, x, one * schedule_.alpha(k), one * schedule_.sigma(k)));
    return output;
  };
  const diffusion::SamplingPlan& plan = schedule_.plan();
  diffusion::sample(schedule_.schedule(), plan, model_.prediction, schedule_.sampling(), network, x_T * diffusion::initial_scale(plan), noise);
  return out;
}

Tensor Distillation::sample_grid(uint64_t seed) const {
  const NoGrad no_grad;
  const Dataset& data = context_.validation && context_.validation->size() > 0 ? *context_.validation : context_.train;
  const Batch columns = picture_columns(data, config_.pictures.columns, model_, seed);
  const int64_t N = columns.size(), part = std::min(N, config_.pictures.batch_size);
  const std::vector<int64_t> shape = latent_shape(columns);
  const models::UNetConditions told = conditions(columns), untold = null_conditions(columns);

  pipelines::DrawRequest request;
  request.guidance.scale = config_.pictures.cfg_scale;
  request.sampling.steps = config_.pictures.teacher_steps, request.sampling.tokens = shape[1] * shape[2];
  request.plan = diffusion::make_plan(model_.schedule, request.sampling);
  std::vector<Tensor> rows;
  for (int64_t block = 0; block < config_.pictures.rows; ++block) {
    std::vector<std::vector<Tensor>> made(static_cast<size_t>(schedule_.steps() + 1));  // by row, then by part
    for (int64_t first = 0; first < N; first += part) {
      const int64_t count = std::min(part, N - first);
      request.ids = at::arange(first, first + count) + block * N, request.seed = seed;
      request.conditional = pipelines::narrow(told, first, count), request.unconditional = pipelines::narrow(untold, first, count);
      const Tensor x_T = pipelines::initial_noise(request.ids, shape, seed).to(device(), dtype());
      request.start = x_T * diffusion::initial_scale(request.plan);
      {
        const nn::AdapterScope none({});
        made[0].push_back(rows_of_pictures(*model_.latent_space, pipelines::draw_latents(*model_.unet, model_.schedule, model_.prediction, request).latents));
      }
      const auto noise = [&](int64_t step) { return normal_by_id(request.ids, shape, seed, Stream::sampling, 1 + step).to(x_T.options()); };
      const std::vector<Tensor> student = student_x0(request.conditional, x_T, noise);
      for (size_t k = 0; k < student.size(); ++k) made[k + 1].push_back(rows_of_pictures(*model_.latent_space, student[k]));
    }
    for (const std::vector<Tensor>& row : made) rows.push_back(at::cat(row));
  }
  return io::make_grid(at::cat(rows), N, kPictureGap, kPictureGap);
}

}  // namespace fewstep
