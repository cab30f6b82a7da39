#include "src/diffusion/samplers.h"

#include <algorithm>
#include <cmath>

#include "src/base/error.h"
#include "src/tensor/ops.h"

namespace fewstep::diffusion {
namespace {

// Everything a sampler reads; x and the state are what it moves.
struct Course {
  const Schedule& schedule;
  const SamplingPlan& plan;
  Prediction prediction;
  const SamplingConfig& config;
  const Network& network;
  const NoiseSource& noise;
  const Observer& observe;
  SamplerState* state;

  double alpha(int64_t i) const { return plan.alphas[static_cast<size_t>(i)]; }
  double sigma(int64_t i) const { return plan.sigmas[static_cast<size_t>(i)]; }
  double timestep(int64_t i) const { return i < plan.steps() ? plan.timesteps[static_cast<size_t>(i)] : plan.end_timestep; }

  // x0 and eps at point i; x0 clipped, eps as the network has it.
  Denoised denoise(const Tensor& x, int64_t i) const {
    const Tensor output = network(x, timestep(i));
    FEW_CHECK(output.sizes() == x.sizes(), "sampler: the network gave {} values for {}", output.numel(), x.numel());
    Denoised parts = split_prediction(prediction, output.to(x.scalar_type()), x, alpha(i), sigma(i));
    if (config.clip_sample > 0.0) parts.x0 = parts.x0.clamp(-config.clip_sample, config.clip_sample);
    return parts;
  }
  // ... with the eps that goes with the clipped x0: x = alpha x0 + sigma eps.
  Denoised denoise_consistently(const Tensor& x, int64_t i) const {
    Denoised parts = denoise(x, i);
    if (config.clip_sample > 0.0) parts.noise = (x - alpha(i) * parts.x0) / sigma(i);
    return parts;
  }
  Tensor draw(const Tensor& like, int64_t i) const {
    if (!noise) fail<Error>("sampler {}: there is no source of noise", name_of(config.sampler));
    return noise(plan.first_step + i).to(like.device(), like.scalar_type());
  }
  void seen(int64_t i, const Tensor& x) const {
    if (observe) observe(plan.first_step + i, x);
  }
};

// Standard deviation of x_{i+1} given x_i and x0: sigma' / sigma * sqrt(sigma^2 - (alpha / alpha')^2 sigma'^2), squared
// (1 - abar') / (1 - abar) (1 - abar / abar') of DDPM, and sigma_up of k-diffusion in units of alpha'.
double ancestral_deviation(const Course& c, int64_t i) {
  const double a = c.alpha(i), s = c.sigma(i), a1 = c.alpha(i + 1), s1 = c.sigma(i + 1);
  const double left = s * s - (a / a1) * (a / a1) * s1 * s1;
  return s1 / s * std::sqrt(std::max(left, 0.0));
}

// DDIM with eta; Euler and flow's Euler are eta = 0 and Euler ancestral is eta = 1.
Tensor sample_ddim(const Course& c, Tensor x, double eta) {
  const bool euler = c.config.sampler != SamplerKind::ddim;  // clipping: diffusers' DDIM keeps the network's eps
  for (int64_t i = 0; i < c.plan.steps(); ++i) {
    const Denoised parts = euler ? c.denoise_consistently(x, i) : c.denoise(x, i);
    const double s1 = c.sigma(i + 1), deviation = eta * ancestral_deviation(c, i);
    x = c.alpha(i + 1) * parts.x0 + std::sqrt(std::max(s1 * s1 - deviation * deviation, 0.0)) * parts.noise;
    if (deviation > 0.0) x = x + deviation * c.draw(x, i);
    c.seen(i, x);
  }
  return x;
}

// Ho et al. 2020, eq. 6 and 7, for any alpha and sigma.
Tensor sample_ddpm(const Course& c, Tensor x) {
  for (int64_t i = 0; i < c.plan.steps(); ++i) {
    const Tensor x0 = c.denoise(x, i).x0;
    const double a = c.alpha(i), s = c.sigma(i), a1 = c.alpha(i + 1), s1 = c.sigma(i + 1);
    const double fresh = s * s - (a / a1) * (a / a1) * s1 * s1;  // beta_t
    x = (a1 * fresh / (s * s)) * x0 + (a / a1 * s1 * s1 / (s * s)) * x;
    const double deviation = c.config.large_variance ? std::sqrt(std::max(fresh, 0.0)) : ancestral_deviation(c, i);
    if (s1 > 0.0 && deviation > 0.0) x = x + deviation * c.draw(x, i);
    c.seen(i, x);
  }
  return x;
}

// Euler's step, then the mean of both slopes: of y = x / alpha over r = sigma / alpha, where dy / dr = eps; for flow, whose r is
// infinite at the start, of x over sigma, where dx / dsigma = eps - x0.
Tensor sample_heun(const Course& c, Tensor x) {
  const bool flow = c.schedule.config().kind == ScheduleKind::flow;
  for (int64_t i = 0; i < c.plan.steps(); ++i) {
    const Denoised here = c.denoise_consistently(x, i);
    x = c.alpha(i + 1) * here.x0 + c.sigma(i + 1) * here.noise;
    if (c.sigma(i + 1) > 0.0) {
      const Denoised there = c.denoise_consistently(x, i + 1);
      if (flow)
        x = x + 0.5 * (c.sigma(i + 1) - c.sigma(i)) * ((there.noise - there.x0) - (here.noise - here.x0));
      else
        x = x + 0.5 * (c.sigma(i + 1) - c.sigma(i) * c.alpha(i + 1) / c.alpha(i)) * (there.noise - here.noise);
    }
    c.seen(i, x);
  }
  return x;
}

// x' = (sigma' / sigma) x + (alpha' - alpha sigma' / sigma) D with D = x0 + (x0 - x0 before) / (2 r), r the ratio of the last
// step's length in ln(alpha / sigma) to this one's. A step from pure noise or to none is first order.
Tensor sample_dpmpp_2m(const Course& c, Tensor x) {
  SamplerState own, &state = c.state ? *c.state : own;
  const int64_t n = c.plan.steps();
  for (int64_t i = 0; i < n; ++i) {
    const Tensor x0 = c.denoise(x, i).x0;
    const double here = std::log(c.alpha(i) / c.sigma(i)), next = std::log(c.alpha(i + 1) / c.sigma(i + 1));
    const bool last = i == n - 1 && c.plan.at_end && (c.sigma(i + 1) == 0.0 || (c.config.lower_order_final && c.plan.whole_steps < 15));
    const double inverse = (next - here) / (here - state.log_snr_half);  // 1 / r
    Tensor direction = x0;
    if (state.x0.defined() && !last && std::isfinite(inverse)) direction = x0 + (0.5 * inverse) * (x0 - state.x0);
    const double keep = c.sigma(i + 1) / c.sigma(i);
    x = keep * x + (c.alpha(i + 1) - c.alpha(i) * keep) * direction;
    state = {x0, here};
    c.seen(i, x);
  }
  return x;
}

// c_skip and c_out of consistency models with sigma_data = 0.5: x0 itself but for t near 0.
struct Boundary {
  double skip, out;
};
Boundary boundary_at(double timestep, double scaling) {
  if (scaling == 0.0) return {0.0, 1.0};
  const double t = timestep * scaling;
  return {0.25 / (t * t + 0.25), t / std::sqrt(t * t + 0.25)};
}

Tensor sample_lcm(const Course& c, Tensor x) {
  for (int64_t i = 0; i < c.plan.steps(); ++i) {
    const Boundary at_t = boundary_at(c.timestep(i), c.config.timestep_scaling);
    Tensor x0 = c.denoise(x, i).x0;
    if (at_t.skip > 0.0) x0 = at_t.out * x0 + at_t.skip * x;
    x = c.sigma(i + 1) == 0.0 ? x0 : c.alpha(i + 1) * x0 + c.sigma(i + 1) * c.draw(x0, i);
    c.seen(i, x);
  }
  return x;
}

}  // namespace

Tensor sample(const Schedule& schedule, const SamplingPlan& plan, Prediction prediction, const SamplingConfig& config,
              const Network& network, Tensor x_start, const NoiseSource& noise, const Observer& observe, SamplerState* state) {
  FEW_CHECK(x_start.is_floating_point() && plan.alphas.size() == plan.timesteps.size() + (plan.timesteps.empty() ? 0 : 1),
            "sampler: a plan of {} steps and {} levels", plan.steps(), plan.alphas.size());
  for (int64_t i = 0; i < plan.steps(); ++i) {
    const bool no_signal = plan.alphas[static_cast<size_t>(i)] == 0.0, no_noise = plan.sigmas[static_cast<size_t>(i)] == 0.0;
    if (no_signal && prediction == Prediction::epsilon)
      fail<ConfigError>("sampler {}: at timestep {} there is nothing but noise, from which an epsilon prediction says nothing about "
                        "the image; take v_prediction, sample or flow, or a schedule without zero_terminal_snr",
                        name_of(config.sampler), plan.timesteps[static_cast<size_t>(i)]);
    FEW_CHECK(!no_noise, "sampler: step {} starts without noise", i);
  }
  const Course course{schedule, plan, prediction, config, network, noise, observe, state};
  switch (config.sampler) {
    case SamplerKind::ddpm: return sample_ddpm(course, std::move(x_start));
    case SamplerKind::ddim: return sample_ddim(course, std::move(x_start), config.eta);
    case SamplerKind::euler:
    case SamplerKind::flow_euler: return sample_ddim(course, std::move(x_start), 0.0);
    case SamplerKind::euler_ancestral: return sample_ddim(course, std::move(x_start), 1.0);
    case SamplerKind::heun: return sample_heun(course, std::move(x_start));
    case SamplerKind::dpmpp_2m: return sample_dpmpp_2m(course, std::move(x_start));
    case SamplerKind::lcm: return sample_lcm(course, std::move(x_start));
  }
  fail("unknown sampler {}", static_cast<int>(config.sampler));
}

int64_t evaluations(const SamplingPlan& plan, SamplerKind sampler) {
  if (sampler != SamplerKind::heun) return plan.steps();
  return 2 * plan.steps() - (plan.ends_clean() && plan.steps() > 0 ? 1 : 0);
}

}  // namespace fewstep::diffusion
