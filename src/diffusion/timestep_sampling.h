// Which timesteps are trained on. Every law is drawn through its inverse distribution function from one uniform number per
// sample, so that a restricted range is an exact truncation and stratification works for all of them.
#pragma once
#include <cstdint>

#include "src/diffusion/schedule.h"

namespace fewstep::diffusion {

// On the share u of the axis (u = 1: noise), before flow's shift:
//   uniform
//   logit_normal  u = sigmoid(mean + std z)                                  (Esser et al. 2024, SD3)
//   mode          u = 1 - v - mode_scale (cos^2(pi v / 2) - 1 + v), v ~ U    (SD3)
//   lognormal     ln(noise ratio) ~ N(mean, std^2)                           (EDM: mean -1.2, std 1.2)
enum class TimestepLaw { uniform, logit_normal, mode, lognormal };

struct TimestepSampling {
  TimestepLaw kind = TimestepLaw::uniform;
  double mean = 0.0, std = 1.0;
  double mode_scale = 1.29;
  double min = 0.0, max = 1.0;  // share of the axis: t in [min T, max T). SDXL's refiner: [0, 0.2)
  bool stratified = false;      // one draw in each of the batch's equal slices of probability; see stratify()
};
void describe(config::Visitor& v, TimestepSampling& c);

inline constexpr int64_t kTimestepColumns = 1;  // uniform numbers per sample
// uniform: [B, >= 1] or [B] in [0, 1), CPU -> [B]: int64 in [0, T) for discrete schedules, float32 in [0, T] for flow and edm.
Tensor sample_timesteps(const TimestepSampling& config, const Schedule& schedule, const Tensor& uniform);
// (slot + uniform) / count: with the slots 0 .. count - 1 of a global batch, one draw in each slice. slots: int64 [B].
Tensor stratify(const Tensor& uniform, const Tensor& slots, int64_t count);

}  // namespace fewstep::diffusion
