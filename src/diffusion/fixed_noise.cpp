#include "src/diffusion/fixed_noise.h"

#include "src/diffusion/loss.h"
#include "src/diffusion/timestep_sampling.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"

namespace fewstep::diffusion {
namespace {
constexpr int64_t kPlaceDraw = 1, kNoiseDraw = 2;  // steps of the keyed stream
}  // namespace

Tensor fixed_noise_loss(const Schedule& schedule, Prediction prediction, const FixedNoise& fixed, const Tensor& level,
                        const Tensor& x0, const std::function<Tensor(const Tensor& x_t, const Tensor& t)>& network) {
  const Tensor place = uniform_by_id(fixed.ids, 1, fixed.seed, Stream::eval, kPlaceDraw);  // [B, 1]
  const Tensor share = (level.unsqueeze(1) + place) / static_cast<double>(fixed.levels);
  TimestepSampling law;
  law.min = fixed.min, law.max = fixed.max;
  const Tensor t = sample_timesteps(law, schedule, share).to(x0.device());
  const Tensor noise = normal_by_id(fixed.ids, x0.sizes().slice(1), fixed.seed, Stream::eval, kNoiseDraw).to(x0.options());
  const Tensor output = network(add_noise(schedule, x0, noise, t), t);
  const Tensor target = prediction_target(prediction, x0, noise, schedule.alpha(t), schedule.sigma(t));
  return diffusion_loss({}, prediction, schedule, output, target, t);
}

}  // namespace fewstep::diffusion
