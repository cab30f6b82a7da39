#include "src/pipelines/draw_latents.h"

#include <functional>

#include "src/base/error.h"
#include "src/diffusion/guidance.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"

namespace fewstep::pipelines {
namespace {

// Streams of noise within one seed: 0 is the start, then one a step, far apart for models that go on with another's
// latents.
constexpr int64_t kNoiseOfStage = 1'000'000;

Tensor map_rows(const Tensor& x, const std::function<Tensor(const Tensor&)>& f) { return x.defined() ? f(x) : x; }

models::UNetConditions map_conditions(const models::UNetConditions& c, const std::function<Tensor(const Tensor&)>& f) {
  models::UNetConditions out;
  out.context = map_rows(c.context, f), out.pooled = map_rows(c.pooled, f);
  out.numbers = map_rows(c.numbers, f), out.number_mask = map_rows(c.number_mask, f);
  return out;
}

Tensor stack_rows(const Tensor& a, const Tensor& b) {
  FEW_CHECK(a.defined() == b.defined(), "conditions of one half of the batch only");
  return a.defined() ? at::cat({a, b}) : a;
}

}  // namespace

models::UNetConditions narrow(const models::UNetConditions& c, int64_t first, int64_t count) {
  return map_conditions(c, [&](const Tensor& x) { return x.narrow(0, first, count); });
}

models::UNetConditions to_device(const models::UNetConditions& c, at::Device device) {
  return map_conditions(c, [&](const Tensor& x) { return x.to(device); });
}

models::UNetConditions concatenate(const models::UNetConditions& a, const models::UNetConditions& b) {
  const auto mask = [](const models::UNetConditions& c) {
    return c.number_mask.defined() || !c.numbers.defined() ? c.number_mask : at::ones_like(c.numbers);
  };
  models::UNetConditions out;
  out.context = stack_rows(a.context, b.context), out.pooled = stack_rows(a.pooled, b.pooled);
  out.numbers = stack_rows(a.numbers, b.numbers);
  if (a.number_mask.defined() || b.number_mask.defined()) out.number_mask = stack_rows(mask(a), mask(b));
  return out;
}

Tensor initial_noise(const Tensor& ids, at::IntArrayRef shape, uint64_t seed) {
  return normal_by_id(ids, shape, seed, Stream::sampling, 0);
}

DrawnLatents draw_latents(const models::UNet2DConditionModel& unet, const diffusion::Schedule& schedule,
                          diffusion::Prediction prediction, const DrawRequest& r, const diffusion::Observer& observe) {
  const NoGrad no_grad;
  const bool guided = r.guidance.scale != 1;
  const models::UNetConditions& single = r.conditional;
  const models::UNetConditions both = guided ? concatenate(r.conditional, r.unconditional) : models::UNetConditions{};
  const Tensor& like = single.context.defined() ? single.context : single.numbers;
  const at::Device device = like.defined() ? like.device() : at::Device(at::kCPU);
  const Tensor start = r.start.defined() ? r.start.to(device)
                                         : initial_noise(r.ids, {r.channels, r.height, r.width}, r.seed).to(device) *
                                               diffusion::initial_scale(r.plan);
  const int64_t B = start.size(0);
  FEW_CHECK(B == r.ids.size(0), "{} latents to draw, {} ids", B, r.ids.size(0));

  DrawnLatents out;
  const double axis = static_cast<double>(schedule.config().num_train_timesteps);
  const auto network = [&](const Tensor& x, double t) {
    const bool here = guided && t / axis >= r.guidance.from && t / axis <= r.guidance.to;
    out.steps += 1, out.nfe += here ? 2 : 1;
    const Tensor timestep = at::full({1}, t, at::TensorOptions(at::kFloat).device(device));
    if (!here) return unet(x, timestep, single);
    const Tensor predicted = unet(at::cat({x, x}), timestep, both);  // [2B, C, h, w]
    return diffusion::guide(predicted.narrow(0, 0, B), predicted.narrow(0, B, B), r.guidance.scale, r.guidance.rescale);
  };
  const auto noise = [&](int64_t step) {
    const int64_t key = 1 + r.stage * kNoiseOfStage + step;
    return normal_by_id(r.ids, start.sizes().slice(1), r.seed, Stream::sampling, key).to(device);
  };
  out.latents = diffusion::sample(schedule, r.plan, prediction, r.sampling, network, start, noise, observe);
  return out;
}

}  // namespace fewstep::pipelines
