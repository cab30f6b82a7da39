// At which noise levels a sampler calls the network. A plan is data: it can be cut by noise level, so that a base model and a
// refiner share one, or a picture is re-noised to the middle of it (SDEdit).
#pragma once
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "src/diffusion/schedule.h"

namespace fewstep::diffusion {

// ddpm, ddim, euler, euler_ancestral, flow_euler, heun, dpmpp_2m: see samplers.h. lcm: x0, then fresh noise (also DMD2's).
enum class SamplerKind { ddpm, ddim, euler, euler_ancestral, heun, dpmpp_2m, lcm, flow_euler };
std::string_view name_of(SamplerKind kind);
std::span<const config::Choice> sampler_choices();

// Timesteps (Lin et al. 2024, Table 2): leading starts below the noisiest one, trailing at it, linspace takes both ends.
// karras and exponential place the noise ratio between the ends of another spacing (`range`), with rho = 7 or evenly in ln.
enum class Spacing { leading, trailing, linspace, karras, exponential };
std::string_view name_of(Spacing spacing);
std::span<const config::Choice> spacing_choices();

struct SamplingConfig {
  SamplerKind sampler = SamplerKind::ddim;
  int64_t steps = 50;
  Spacing spacing = Spacing::trailing;
  Spacing range = Spacing::linspace;  // of karras and exponential: leading, trailing or linspace
  int64_t steps_offset = 0;           // leading: added to every timestep (Stable Diffusion: 1)
  double eta = 0.0;                   // ddim: 0 deterministic, 1 ancestral
  bool end_clean = true;              // the last step goes to sigma = 0; false: to the schedule's smallest noise (t = 0)
  double clip_sample = 0.0;           // x0 is clamped to +- this in every step; 0: not. For pixels in [-1, 1]: 1
  bool large_variance = false;        // ddpm: beta_t instead of the posterior variance
  bool lower_order_final = true;      // dpmpp_2m: the last step is first order when there are fewer than 15
  int64_t original_steps = 50;        // lcm: the grid of its distillation
  double timestep_scaling = 10.0;     // lcm: of the boundary condition c_skip, c_out; 0: x0 as it is (DMD2)
  double sigma_min = 0.0, sigma_max = 0.0;  // karras, exponential: ends of the noise ratio; 0: those of `range`
  std::vector<double> timesteps = {}; // exactly these, falling, instead of spacing and steps (DMD2: [999, 749, 499, 249])
  int64_t tokens = 0;                 // flow with dynamic_shift: image tokens of the network
  std::optional<double> mu = {};      // ... or its mu itself; not in YAML
};
void describe(config::Visitor& v, SamplingConfig& c);

struct SamplingPlan {
  std::vector<double> timesteps;      // [n] falling: what the network is told
  std::vector<double> alphas, sigmas; // [n + 1]: the levels of those, then the end
  double end_timestep = 0.0;          // of the end; only Heun calls the network there, and only if the end is noisy
  double unit = 1.0;                  // see initial_scale
  // Of a part: where it lies in the whole plan. Noise is drawn by the whole plan's step number, and dpmpp_2m looks at its end.
  int64_t first_step = 0, whole_steps = 0;
  bool at_end = true;
  int64_t steps() const { return static_cast<int64_t>(timesteps.size()); }
  double ratio(int64_t i) const;      // sigmas[i] / alphas[i]
  bool ends_clean() const { return sigmas.empty() || sigmas.back() == 0.0; }
};

// ConfigError for steps that the schedule cannot give (more than its timesteps, leading for flow, ...).
SamplingPlan make_plan(const Schedule& schedule, const SamplingConfig& config);
// What unit normal noise is multiplied by to start `plan` from nothing: 1 (variance of x_t for unit data), or sigma where
// diffusers has it so (euler, euler_ancestral and heun with trailing and linspace).
double initial_scale(const SamplingPlan& plan);

// The steps that start at a noise ratio in [to_ratio, from_ratio). The last of them ends where the plan has its next point, so
// that slice(inf, r) and slice(r, 0) one after the other are the whole plan. May have no steps.
SamplingPlan slice_plan(const SamplingPlan& plan, double from_ratio, double to_ratio);
// Steps that start at timestep >= cut, and those below: base and refiner (diffusers' denoising_end, denoising_start).
SamplingPlan base_part(const SamplingPlan& plan, double cut_timestep);
SamplingPlan refiner_part(const SamplingPlan& plan, double cut_timestep);
// denoised in [0, 1], the share of the training timesteps that is behind: T - denoised T, rounded for discrete schedules.
// Base until 0.8 of 1000: cut 200. SDEdit of strength s: denoised = 1 - s.
double cut_timestep(const Schedule& schedule, double denoised);
// `plan` from noise ratio `ratio` on: that point first, then all of the plan's that are cleaner. Takes over where a sampler on
// another plan (or of another schedule in the same variance) stopped; its steps are counted from 0, so that noise must come from
// another stream than the first plan's.
SamplingPlan continue_plan(const Schedule& schedule, const SamplingPlan& plan, double ratio);

}  // namespace fewstep::diffusion
