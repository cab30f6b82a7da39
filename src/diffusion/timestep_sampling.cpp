#include "src/diffusion/timestep_sampling.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "src/base/error.h"
#include "src/tensor/ops.h"

namespace fewstep::diffusion {
namespace {

constexpr config::Choice kTimestepLaws[] = {{"uniform", static_cast<int>(TimestepLaw::uniform)},
                                            {"logit_normal", static_cast<int>(TimestepLaw::logit_normal)},
                                            {"mode", static_cast<int>(TimestepLaw::mode)},
                                            {"lognormal", static_cast<int>(TimestepLaw::lognormal)}};

double normal_cdf(double z) { return 0.5 * std::erfc(-z / std::numbers::sqrt2); }

double mode_curve(double v, double scale) {  // falls from 1 to 0
  const double cosine = std::cos(std::numbers::pi / 2 * v);
  return 1.0 - v - scale * (cosine * cosine - 1.0 + v);
}
// v with mode_curve(v) = u. The curve is monotonous for the allowed scales.
double mode_argument(double u, double scale) {
  double low = 0.0, high = 1.0;
  for (int i = 0; i < 60; ++i) {
    const double middle = 0.5 * (low + high);
    (mode_curve(middle, scale) > u ? low : high) = middle;
  }
  return 0.5 * (low + high);
}

// z of N(0, 1) restricted to [from, to], by its inverse distribution function. p: float64 [B] in [0, 1).
Tensor truncated_normal(const Tensor& p, double from, double to) {
  // In the lower tail the distribution function keeps its digits: the interval is mirrored there when it lies above 0.
  const bool mirrored = from > 0.0;
  const double low = normal_cdf(mirrored ? -to : from), high = normal_cdf(mirrored ? -from : to);
  const Tensor z = at::special_ndtri((low + p * (high - low)).clamp(1e-300, 1.0 - 1e-16));
  return mirrored ? -z : z;
}

double logit(double u) { return std::log(u / (1.0 - u)); }

struct ShareRange {
  double from, to;  // of the unshifted axis
};

// float64 [B]: share of the unshifted axis.
Tensor draw_share(const TimestepSampling& c, const Schedule& schedule, ShareRange range, const Tensor& p) {
  switch (c.kind) {
    case TimestepLaw::uniform: return range.from + p * (range.to - range.from);
    case TimestepLaw::logit_normal: {
      const Tensor z = truncated_normal(p, (logit(range.from) - c.mean) / c.std, (logit(range.to) - c.mean) / c.std);
      return (c.mean + c.std * z).sigmoid();
    }
    case TimestepLaw::mode: {
      const double first = mode_argument(range.to, c.mode_scale), last = mode_argument(range.from, c.mode_scale);
      const Tensor v = last + p * (first - last), cosine = (v * (std::numbers::pi / 2)).cos();
      return 1.0 - v - c.mode_scale * (cosine.square() - 1.0 + v);
    }
    case TimestepLaw::lognormal: {
      const double T = static_cast<double>(schedule.config().num_train_timesteps);
      const auto z_at = [&](double share) { return (std::log(schedule.noise_ratio(share * T)) - c.mean) / c.std; };
      const Tensor ratio = (c.mean + c.std * truncated_normal(p, z_at(range.from), z_at(range.to))).exp();
      Tensor share = at::empty_like(ratio);
      for (int64_t i = 0; i < ratio.numel(); ++i)
        share.data_ptr<double>()[i] = schedule.timestep_of_ratio(ratio.data_ptr<double>()[i]) / T;
      return share;
    }
  }
  fail("unknown timestep law {}", static_cast<int>(c.kind));
}

void check_timesteps(const TimestepSampling& c) {
  if (!(c.min >= 0.0 && c.min < c.max && c.max <= 1.0))
    fail<ConfigError>("timesteps: min {} and max {} are shares of the axis, 0 <= min < max <= 1", c.min, c.max);
  if (!(c.std > 0.0)) fail<ConfigError>("timesteps: std is {}: above 0", c.std);
  if (!(c.mode_scale >= -1.0 && c.mode_scale <= 2.0 / (std::numbers::pi - 2.0)))
    fail<ConfigError>("timesteps: mode_scale is {}: in [-1, 1.75], where the curve is monotonous", c.mode_scale);
}

}  // namespace

void describe(config::Visitor& v, TimestepSampling& c) {
  v.field("kind", c.kind, "law of the share of the axis: uniform, logit_normal and mode (SD3), lognormal in the noise ratio (EDM)", kTimestepLaws);
  v.field("mean", c.mean, "logit_normal, lognormal: mean of the normal (EDM: -1.2)");
  v.field("std", c.std, "logit_normal, lognormal: its standard deviation (EDM: 1.2)", config::kPositive);
  v.field("mode_scale", c.mode_scale, "mode: weight of the middle; negative: of the ends", config::Range{-1.0, 2.0 / (std::numbers::pi - 2.0)});
  v.field("min", c.min, "share of the axis from which timesteps are drawn", config::kUnit);
  v.field("max", c.max, "share of the axis below which they are drawn (SDXL's refiner: 0.2)", config::kUnit);
  v.field("stratified", c.stratified, "one draw in each of a global batch's equal slices of probability: less variance of the loss");
  v.check(c.min < c.max, "max", "must be above min");
}

Tensor sample_timesteps(const TimestepSampling& config, const Schedule& schedule, const Tensor& uniform) {
  check_timesteps(config);
  const Tensor p = (uniform.dim() == 2 ? uniform.select(1, 0) : uniform).to(at::kCPU, at::kDouble).contiguous();  // [B]
  const double T = static_cast<double>(schedule.config().num_train_timesteps);
  if (schedule.discrete()) {
    // Whole timesteps in [min T, max T); rounding must not push 0.2 * 1000 over 200.
    const double first = std::ceil(config.min * T - 1e-9), last = std::ceil(config.max * T - 1e-9) - 1.0;
    if (first > last)
      fail<ConfigError>("timesteps: there is no whole timestep in [{}, {}) of {}", config.min * T, config.max * T, T);
    if (config.kind == TimestepLaw::lognormal)  // the nearest noise level of the table
      return (draw_share(config, schedule, {first / T, last / T}, p) * T).round().clamp(first, last).to(at::kLong);
    return (draw_share(config, schedule, {first / T, (last + 1.0) / T}, p) * T).floor().clamp(first, last).to(at::kLong);
  }
  const ShareRange range = schedule.config().kind == ScheduleKind::flow && config.kind != TimestepLaw::lognormal
                               ? ShareRange{schedule.unshifted(config.min), schedule.unshifted(config.max)}
                               : ShareRange{config.min, config.max};
  Tensor share = draw_share(config, schedule, range, p);
  if (schedule.config().kind == ScheduleKind::flow && config.kind != TimestepLaw::lognormal) {
    const double shift = schedule.config().shift;
    share = shift * share / (1.0 + (shift - 1.0) * share);
  }
  return (share * T).clamp(config.min * T, config.max * T).to(at::kFloat);
}

Tensor stratify(const Tensor& uniform, const Tensor& slots, int64_t count) {
  FEW_CHECK(slots.dim() == 1 && slots.size(0) == uniform.size(0) && count > 0, "stratify: {} slots of {} for {} rows", slots.numel(), count,
            uniform.size(0));
  const Tensor slot = uniform.dim() == 2 ? slots.unsqueeze(1) : slots;
  return (slot.to(at::kDouble) + uniform.to(at::kDouble)) / static_cast<double>(count);
}

}  // namespace fewstep::diffusion
