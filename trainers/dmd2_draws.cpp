#include "trainers/dmd2_draws.h"

#include "src/tensor/ops.h"

namespace fewstep {

int64_t draw_rung(const diffusion::StudentSchedule& schedule, uint64_t seed, int64_t step) {
  return schedule.draw_rung(uniform_by_id(at::zeros({1}, at::kLong), 1, seed, Stream::rung, step).item<double>());
}

Tensor draw_rollout(const DrawKey& key, at::IntArrayRef shape, int64_t slots, const at::TensorOptions& options) {
  std::vector<int64_t> row = shape.vec();
  row.insert(row.begin(), slots);
  return normal_by_id(key.ids, row, key.seed, Stream::rollout, key.step).to(options);
}

NoisedX0 draw_noised(const DrawKey& key, Stream stream, const diffusion::ScoreRange& range, const diffusion::Schedule& schedule,
                     const Tensor& x0) {
  const int64_t elements = x0.numel() / x0.size(0);
  // Normals and uniforms count one stream's blocks: two normals a block, four uniforms. The uniform is of a block behind the noise's.
  const Tensor behind = at::full_like(key.ids, 4 * ((elements + 1) / 2));
  const Tensor u = uniform_by_id(key.ids, behind, 1, key.seed, stream, key.step).select(1, 0);
  NoisedX0 out;
  out.noise = normal_by_id(key.ids, x0.sizes().slice(1), key.seed, stream, key.step).to(x0.options());
  out.t = diffusion::score_timesteps(range, schedule, u).to(x0.device());
  out.alpha = schedule.alpha(out.t), out.sigma = schedule.sigma(out.t);
  out.x_t = diffusion::add_noise(schedule, x0, out.noise, out.t);
  return out;
}

}  // namespace fewstep
