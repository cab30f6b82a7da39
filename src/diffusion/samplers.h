// Samplers: pure functions of (plan, network, start, noise). All work in the schedule's variance, x_t = alpha x0 + sigma eps,
// which is what the network was trained on; no separate input scaling exists.
//   ddim            x' = alpha' x0 + sqrt(sigma'^2 - s^2) eps + s z, s = eta * ancestral std   (Song et al. 2021)
//   euler, flow_euler   the same with eta = 0: Euler's method in (x / alpha, sigma / alpha), and flow's in (x, sigma)
//   euler_ancestral     the same with eta = 1
//   ddpm            posterior mean of (clipped) x0 and x, plus noise                           (Ho et al. 2020)
//   heun            Euler, then the mean of both slopes; last step to sigma = 0: Euler          (Karras et al. 2022)
//   dpmpp_2m        second-order multistep in ln(alpha / sigma) on x0                           (Lu et al. 2022)
//   lcm             x0, then fresh noise                                                       (Luo et al. 2023; DMD2)
#pragma once
#include <cstdint>
#include <functional>

#include "src/diffusion/prediction.h"
#include "src/diffusion/sampling_plan.h"

namespace fewstep::diffusion {

// x [B, ...], the timestep for all of them -> the raw (guided) prediction, of x's shape.
using Network = std::function<Tensor(const Tensor& x, double timestep)>;
// Unit normal noise of x's shape for a step, counted in the whole plan (SamplingPlan::first_step + i). Called at most once a
// step, and only by samplers that need it.
using NoiseSource = std::function<Tensor(int64_t step)>;
using Observer = std::function<void(int64_t step, const Tensor& x)>;  // after each step, counted in the same way

// What a multistep sampler remembers. Passed on, two parts of one plan give what the whole plan gives.
struct SamplerState {
  Tensor x0;               // of the step before; undefined: none
  double log_snr_half = 0; // ln(alpha / sigma) there
};

// x_start: at the plan's first level. Returns x at the plan's end, in x_start's type; the network's output is brought to it.
Tensor sample(const Schedule& schedule, const SamplingPlan& plan, Prediction prediction, const SamplingConfig& config,
              const Network& network, Tensor x_start, const NoiseSource& noise = {}, const Observer& observe = {},
              SamplerState* state = nullptr);
int64_t evaluations(const SamplingPlan& plan, SamplerKind sampler);  // network calls (times two with guidance)

}  // namespace fewstep::diffusion
