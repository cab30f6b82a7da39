#include "src/diffusion/distribution_matching.h"

#include <algorithm>
#include <cmath>

#include "src/base/error.h"
#include "src/diffusion/guidance.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::diffusion {
namespace {

Tensor at_least_float(const Tensor& x) { return x.scalar_type() == at::kDouble ? x : x.to(at::kFloat); }
Tensor mean_per_sample(const Tensor& x) { return x.flatten(1).mean(1); }  // [B, ...] -> [B]

}  // namespace

void describe(config::Visitor& v, ScoreRange& c) {
  v.field("min", c.min, "least share of the noise axis", config::kUnit);
  v.field("max", c.max, "largest share; low values hide modes from a student that does not have them yet", config::kUnit);
  v.check(c.min < c.max, "max", "must be above min");
  v.field("shift", c.shift, "moves the draws towards noise; 1: uniform", config::kPositive);
}

Tensor score_timesteps(const ScoreRange& range, const Schedule& schedule, const Tensor& uniform) {
  FEW_CHECK(uniform.dim() == 1, "one uniform number a sample");
  if (!(range.min >= 0.0 && range.max <= 1.0 && range.min < range.max))
    fail<ConfigError>("score range: shares [{}, {}] of the axis: they must rise within [0, 1]", range.min, range.max);
  const double T = static_cast<double>(schedule.config().num_train_timesteps);
  Tensor u = uniform.to(at::kDouble);
  if (!schedule.discrete()) {
    if (range.shift == 1.0) return (range.min + u * (range.max - range.min)) * T;
    return (u * range.shift / (1.0 + (range.shift - 1.0) * u)).clamp(range.min, range.max) * T;
  }
  const double low = std::nearbyint(range.min * T), high = std::min(std::nearbyint(range.max * T), schedule.max_timestep());
  if (range.shift == 1.0) return (low + (u * (high - low + 1.0)).floor()).clamp(low, high).to(at::kLong);
  return (u * range.shift / (1.0 + (range.shift - 1.0) * u)).mul(T).floor().clamp(low, high).to(at::kLong);
}

Tensor predicted_x0(Prediction prediction, const Tensor& output, const Tensor& x_t, const Tensor& alpha, const Tensor& sigma) {
  const Tensor x = at_least_float(x_t);
  return split_prediction(prediction, output.to(x.scalar_type()), x, alpha, sigma).x0;
}

Tensor guided_x0(Prediction prediction, const Tensor& conditional, const Tensor& unconditional, double cfg_scale, const Tensor& x_t,
                 const Tensor& alpha, const Tensor& sigma) {
  if (!unconditional.defined()) return predicted_x0(prediction, conditional, x_t, alpha, sigma);
  return predicted_x0(prediction, guide(at_least_float(conditional), at_least_float(unconditional), cfg_scale), x_t, alpha, sigma);
}

Tensor reverse_kl_gradient(const Tensor& x0, const Tensor& fake_x0, const Tensor& real_x0) {
  FEW_CHECK(x0.sizes() == fake_x0.sizes() && x0.sizes() == real_x0.sizes(), "a student's {} values, {} of the fake score, {} of the real one",
            x0.numel(), fake_x0.numel(), real_x0.numel());
  const NoGrad no_grad;
  const Tensor real = at_least_float(real_x0), distance = mean_per_sample((at_least_float(x0) - real).abs()).clamp_min(kSmallestDistance);
  return (at_least_float(fake_x0) - real) / append_dims(distance, x0.dim());
}

Tensor pseudo_loss(const Tensor& x0, const Tensor& gradient) {
  FEW_CHECK(x0.sizes() == gradient.sizes(), "a gradient of {} values for {}", gradient.numel(), x0.numel());
  const Tensor x = at_least_float(x0);
  return 0.5 * mean_per_sample((x - x.detach() + gradient.detach()).square());
}

Tensor fake_score_loss(Prediction prediction, const Tensor& output, const Tensor& x0, const Tensor& noise, const Tensor& alpha,
                       const Tensor& sigma) {
  FEW_CHECK(output.sizes() == x0.sizes(), "a fake score of {} values for {}", output.numel(), x0.numel());
  const Tensor target = prediction_target(prediction, at_least_float(x0.detach()), at_least_float(noise), alpha, sigma);
  return mean_per_sample((at_least_float(output) - target).square());
}

Tensor simulate_student(const Network& student, Prediction prediction, const StudentSchedule& schedule, const Tensor& x_T,
                        const NoiseSource& noise, int64_t rung) {
  FEW_CHECK(rung >= 0 && rung < schedule.steps(), "rung {} of a student of {} steps", rung, schedule.steps());
  if (rung == StudentSchedule::terminal()) return x_T;
  const NoGrad no_grad;
  return sample(schedule.schedule(), schedule.until(rung), prediction, schedule.sampling(), student, x_T, noise);
}

void align_fake_score(std::span<const Tensor> fake, std::span<const Tensor> student, double keep) {
  if (!(keep >= 0.0 && keep <= 1.0)) fail<ConfigError>("fake score: the share that is kept is {}: in [0, 1], for example 0.97", keep);
  FEW_CHECK(fake.size() == student.size(), "{} parameters of the fake score and {} of the student", fake.size(), student.size());
  const NoGrad no_grad;
  for (size_t i = 0; i < fake.size(); ++i) {
    FEW_CHECK(fake[i].sizes() == student[i].sizes(), "parameter {}: the fake score has {} values and the student {}", i, fake[i].numel(),
              student[i].numel());
    fake[i].lerp_(student[i].to(fake[i].device(), fake[i].scalar_type()), 1.0 - keep);
  }
}

ScoreGap score_gap(const Tensor& fake_x0, const Tensor& real_x0, const Tensor& t, const Schedule& schedule, int64_t bins) {
  FEW_CHECK(bins >= 1 && t.dim() == 1 && t.size(0) == fake_x0.size(0), "score gap: {} bins, {} timesteps of {} samples", bins, t.numel(),
            fake_x0.size(0));
  const NoGrad no_grad;
  const Tensor gap = mean_per_sample((at_least_float(fake_x0) - at_least_float(real_x0)).abs()).to(at::kDouble);
  const double T = static_cast<double>(schedule.config().num_train_timesteps);
  const Tensor bin = (t.to(gap.device(), at::kDouble) / T * static_cast<double>(bins)).floor().to(at::kLong).clamp(0, bins - 1);
  const Tensor none = at::zeros({bins}, gap.options());
  return {none.index_add(0, bin, gap), none.index_add(0, bin, at::ones_like(gap))};
}

double gradient_ratio(const Tensor& of, const Tensor& to) {
  const double above = of.detach().to(at::kDouble).norm().item<double>(), below = to.detach().to(at::kDouble).norm().item<double>();
  return above == 0.0 && below == 0.0 ? 0.0 : above / below;
}

}  // namespace fewstep::diffusion
