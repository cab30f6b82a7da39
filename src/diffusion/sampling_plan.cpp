#include "src/diffusion/sampling_plan.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "src/base/error.h"

namespace fewstep::diffusion {
namespace {

constexpr config::Choice kSamplers[] = {{"ddpm", static_cast<int>(SamplerKind::ddpm)},
                                        {"ddim", static_cast<int>(SamplerKind::ddim)},
                                        {"euler", static_cast<int>(SamplerKind::euler)},
                                        {"euler_ancestral", static_cast<int>(SamplerKind::euler_ancestral)},
                                        {"heun", static_cast<int>(SamplerKind::heun)},
                                        {"dpmpp_2m", static_cast<int>(SamplerKind::dpmpp_2m)},
                                        {"lcm", static_cast<int>(SamplerKind::lcm)},
                                        {"flow_euler", static_cast<int>(SamplerKind::flow_euler)}};
constexpr config::Choice kSpacings[] = {{"leading", static_cast<int>(Spacing::leading)},
                                        {"trailing", static_cast<int>(Spacing::trailing)},
                                        {"linspace", static_cast<int>(Spacing::linspace)},
                                        {"karras", static_cast<int>(Spacing::karras)},
                                        {"exponential", static_cast<int>(Spacing::exponential)}};
constexpr double kKarrasRho = 7.0;

using Steps = std::vector<double>;

// Samplers that diffusers writes in the variance of k-diffusion: their timesteps may lie between whole ones.
bool of_k_diffusion(SamplerKind kind) {
  return kind == SamplerKind::euler || kind == SamplerKind::euler_ancestral || kind == SamplerKind::heun || kind == SamplerKind::flow_euler;
}

Steps evenly(double from, double to, int64_t count) {  // both ends, as numpy.linspace
  Steps out(static_cast<size_t>(count));
  const double step = count > 1 ? (to - from) / static_cast<double>(count - 1) : 0.0;
  for (int64_t i = 0; i < count; ++i) out[static_cast<size_t>(i)] = from + step * static_cast<double>(i);
  if (count > 1) out.back() = to;
  return out;
}

// numpy rounds halves to even, and so does nearbyint.
void round_all(Steps* steps) {
  for (double& t : *steps) t = std::nearbyint(t);
}

// Timesteps of a table, falling. DPM-Solver's grid has one point more at its clean end, which is left out. A single linspace
// step is the noisiest one (diffusers: the cleanest, from which nothing can be sampled).
Steps table_steps(int64_t T, const SamplingConfig& c, Spacing spacing) {
  const bool extra = c.sampler == SamplerKind::dpmpp_2m;
  const int64_t n = c.steps, points = n + (extra ? 1 : 0);
  Steps out;
  if (spacing == Spacing::linspace) {
    out = evenly(static_cast<double>(T - 1), 0.0, points);
    if (!of_k_diffusion(c.sampler)) round_all(&out);
  } else if (spacing == Spacing::leading) {
    const int64_t stride = T / points;
    for (int64_t i = points; i-- > 0;) out.push_back(static_cast<double>(i * stride + c.steps_offset));
  } else {
    const double stride = static_cast<double>(T) / static_cast<double>(n);
    for (int64_t i = 0; i < n; ++i) out.push_back(static_cast<double>(T) - static_cast<double>(i) * stride);
    round_all(&out);
    for (double& t : out) t -= 1.0;
    return out;
  }
  if (extra) out.resize(static_cast<size_t>(n));
  return out;
}

// Latent consistency: every (L / n)-th timestep of the grid of L steps it was distilled on.
Steps lcm_steps(int64_t T, const SamplingConfig& c) {
  if (c.original_steps > T) fail<ConfigError>("sampling lcm: original_steps {} above the {} training timesteps", c.original_steps, T);
  if (c.steps > c.original_steps)
    fail<ConfigError>("sampling lcm: {} steps of a grid of original_steps {}: take fewer, or raise original_steps", c.steps, c.original_steps);
  const int64_t stride = T / c.original_steps;
  Steps out;
  for (int64_t i = 0; i < c.steps; ++i) {
    const double share = static_cast<double>(i) * static_cast<double>(c.original_steps) / static_cast<double>(c.steps);
    const int64_t from_end = static_cast<int64_t>(std::floor(share));
    out.push_back(static_cast<double>((c.original_steps - from_end) * stride - 1));
  }
  return out;
}

// Flow: sigmas 1 .. 1 / n (trailing, what pipelines pass), or down to the smallest training sigma (linspace, what
// diffusers' scheduler takes by itself; it shifts that end twice, and so do we). Then the shift, then the stretch.
Steps flow_sigmas(const Schedule& schedule, const SamplingConfig& c, Spacing spacing) {
  const ScheduleConfig& s = schedule.config();
  if (spacing == Spacing::leading)
    fail<ConfigError>("sampling: spacing leading starts below pure noise and does not suit flow; take trailing or linspace");
  const double n = static_cast<double>(c.steps), least = 1.0 / static_cast<double>(s.num_train_timesteps);
  const double end = spacing == Spacing::trailing ? 1.0 / n : s.dynamic_shift ? least : Schedule::shifted(least, s.shift);
  const double shift = c.mu ? schedule.shift_of_mu(*c.mu) : schedule.shift_for(c.tokens);
  Steps out = evenly(1.0, end, c.steps);
  for (double& sigma : out) sigma = Schedule::shifted(sigma, shift);
  if (s.shift_terminal > 0.0 && out.back() < 1.0) {
    const double stretch = (1.0 - out.back()) / (1.0 - s.shift_terminal);
    for (double& sigma : out) sigma = 1.0 - (1.0 - sigma) / stretch;
  }
  return out;
}

// n levels between the ends: Karras et al. 2022, eq. 5, or evenly in ln.
Steps between_levels(Spacing spacing, double highest, double lowest, int64_t n) {
  const bool karras = spacing == Spacing::karras;
  const auto forward = [&](double r) { return karras ? std::pow(r, 1.0 / kKarrasRho) : std::log(r); };
  Steps out = evenly(forward(highest), forward(lowest), n);
  for (double& r : out) r = karras ? std::pow(r, kKarrasRho) : std::exp(r);
  return out;
}

// The timestep of a noise ratio between those of a table, linear in ln (as k-diffusion has it). diffusers keeps the logarithms
// of the table in float32, and where it then cuts off the fraction a last digit decides between two timesteps.
double timestep_in_ln(const Schedule& schedule, double ratio) {
  const auto ln_at = [&](double t) { return std::log(static_cast<float>(schedule.noise_ratio(t))); };
  const double x = std::log(std::max(ratio, 1e-10)), last = schedule.max_timestep();
  double low = std::floor(schedule.timestep_of_ratio(ratio));
  if (low > 0.0 && ln_at(low) > x) low -= 1.0;
  if (low < last && ln_at(low + 1.0) <= x) low += 1.0;
  low = std::min(low, last - 1.0);
  const float here = ln_at(low), next = ln_at(low + 1.0);
  const double weight = std::clamp((static_cast<double>(here) - x) / static_cast<double>(here - next), 0.0, 1.0);
  return (1.0 - weight) * low + weight * (low + 1.0);
}

void add_level(SamplingPlan* plan, double alpha, double sigma) {
  plan->alphas.push_back(alpha);
  plan->sigmas.push_back(sigma);
}

// alpha and sigma of a noise ratio in the variance of a beta schedule (data = 1) or of EDM.
void add_ratio(SamplingPlan* plan, double ratio, double data) {
  const double alpha = 1.0 / std::sqrt(ratio * ratio + data * data);
  add_level(plan, alpha, ratio * alpha);
}

double data_of(const Schedule& schedule) { return schedule.discrete() ? 1.0 : schedule.config().sigma_data; }

SamplingPlan table_plan(const Schedule& schedule, const SamplingConfig& c) {
  const int64_t T = schedule.config().num_train_timesteps;
  const bool curved = c.spacing == Spacing::karras || c.spacing == Spacing::exponential;
  if (c.timesteps.empty() && c.steps > T) fail<ConfigError>("sampling: {} steps are more than the {} training timesteps", c.steps, T);
  SamplingPlan plan;
  plan.timesteps = !c.timesteps.empty()               ? c.timesteps
                   : c.sampler == SamplerKind::lcm    ? lcm_steps(T, c)
                                                      : table_steps(T, c, curved ? c.range : c.spacing);
  if (plan.timesteps.front() > schedule.max_timestep())
    fail<ConfigError>("sampling: the first timestep is {}, and the last one trained on is {}: lower steps_offset or take trailing spacing",
                      plan.timesteps.front(), schedule.max_timestep());
  if (curved && c.timesteps.empty()) {
    // DPM-Solver takes the whole axis, the others the ends of their own spacing.
    const bool whole = c.sampler == SamplerKind::dpmpp_2m;
    const double first = whole ? schedule.max_timestep() : plan.timesteps.front(), last = whole ? 0.0 : plan.timesteps.back();
    const auto end_at = [&](double t) { return static_cast<double>(static_cast<float>(schedule.noise_ratio(t))); };
    const double highest = c.sigma_max > 0 ? c.sigma_max : end_at(first), lowest = c.sigma_min > 0 ? c.sigma_min : end_at(last);
    const Steps ratios = between_levels(c.spacing, highest, lowest, c.steps);
    const bool whole_numbers = whole && c.spacing == Spacing::karras && schedule.config().kind != ScheduleKind::cosine;
    for (size_t i = 0; i < ratios.size(); ++i) {
      const double t = timestep_in_ln(schedule, ratios[i]);
      // diffusers' DPM-Solver tells whole timesteps: rounded, or cut down.
      plan.timesteps[i] = whole_numbers ? std::nearbyint(t) : whole ? std::floor(t) : t;
      add_ratio(&plan, ratios[i], 1.0);
    }
  } else {
    for (const double t : plan.timesteps) {
      if (of_k_diffusion(c.sampler) || c.sampler == SamplerKind::dpmpp_2m)
        add_ratio(&plan, schedule.noise_ratio(t), 1.0);  // finite also at a zero terminal SNR
      else
        add_level(&plan, schedule.alpha(t), schedule.sigma(t));
    }
  }
  if (c.end_clean || c.sampler == SamplerKind::lcm)  // lcm ends with x0
    add_level(&plan, 1.0, 0.0);
  else
    add_level(&plan, schedule.alpha(0.0), schedule.sigma(0.0));
  return plan;
}

SamplingPlan flow_plan(const Schedule& schedule, const SamplingConfig& c) {
  const bool curved = c.spacing == Spacing::karras || c.spacing == Spacing::exponential;
  const double T = static_cast<double>(schedule.config().num_train_timesteps);
  Steps sigmas;
  if (c.timesteps.empty()) {
    sigmas = flow_sigmas(schedule, c, curved ? c.range : c.spacing);
    if (curved) sigmas = between_levels(c.spacing, c.sigma_max > 0 ? c.sigma_max : sigmas.front(), c.sigma_min > 0 ? c.sigma_min : sigmas.back(), c.steps);
  } else {
    for (const double t : c.timesteps) sigmas.push_back(t / T);
  }
  SamplingPlan plan;
  for (const double sigma : sigmas) {
    plan.timesteps.push_back(sigma * T);
    add_level(&plan, 1.0 - sigma, sigma);
  }
  const double end = c.end_clean || c.sampler == SamplerKind::lcm ? 0.0 : 1.0 / T;
  add_level(&plan, 1.0 - end, end);
  plan.end_timestep = end * T;
  return plan;
}

// EDM: the axis is even in ln of the noise ratio, so that trailing and linspace are `exponential`; karras is the paper's.
SamplingPlan edm_plan(const Schedule& schedule, const SamplingConfig& c) {
  const ScheduleConfig& s = schedule.config();
  const double highest = c.sigma_max > 0 ? c.sigma_max : s.sigma_max, lowest = c.sigma_min > 0 ? c.sigma_min : s.sigma_min;
  if (c.timesteps.empty() && c.spacing == Spacing::leading)
    fail<ConfigError>("sampling: spacing leading does not suit edm; take karras, exponential or linspace");
  Steps ratios;
  for (const double t : c.timesteps) ratios.push_back(schedule.noise_ratio(t));
  if (c.timesteps.empty() && c.spacing == Spacing::trailing)  // a step of the same length leads to sigma_min at the end
    ratios = between_levels(Spacing::exponential, highest, lowest, c.steps + 1), ratios.pop_back();
  else if (c.timesteps.empty())
    ratios = between_levels(c.spacing == Spacing::karras ? Spacing::karras : Spacing::exponential, highest, lowest, c.steps);
  SamplingPlan plan;
  for (const double r : ratios) {
    plan.timesteps.push_back(schedule.timestep_of_ratio(r));
    add_ratio(&plan, r, s.sigma_data);
  }
  const bool clean = c.end_clean || c.sampler == SamplerKind::lcm;
  add_ratio(&plan, clean ? 0.0 : lowest, s.sigma_data);
  plan.end_timestep = clean ? 0.0 : schedule.timestep_of_ratio(lowest);
  return plan;
}

void check_sampling(const SamplingConfig& c) {
  if (c.timesteps.empty() && c.steps < 1) fail<ConfigError>("sampling: steps is {}: at least 1", c.steps);
  if (c.range == Spacing::karras || c.range == Spacing::exponential)
    fail<ConfigError>("sampling: range is {}: leading, trailing or linspace", name_of(c.range));
  for (size_t i = 0; i < c.timesteps.size(); ++i)
    if (c.timesteps[i] < 0 || (i > 0 && c.timesteps[i] >= c.timesteps[i - 1]))
      fail<ConfigError>("sampling: timesteps must fall and not be negative: number {} is {}", i, c.timesteps[i]);
}

SamplingPlan part_of(const SamplingPlan& plan, const std::function<bool(int64_t)>& keeps) {
  SamplingPlan out;
  out.end_timestep = plan.end_timestep;
  out.whole_steps = plan.whole_steps;
  bool open = false;
  for (int64_t i = 0; i < plan.steps(); ++i) {
    const size_t k = static_cast<size_t>(i);
    if (!keeps(i)) {
      if (open) {  // the step before ends here
        add_level(&out, plan.alphas[k], plan.sigmas[k]);
        out.end_timestep = plan.timesteps[k];
        out.at_end = false;
        return out;
      }
      continue;
    }
    if (!open) {
      out.unit = i == 0 ? plan.unit : 1.0;
      out.first_step = plan.first_step + i;
    }
    open = true;
    out.timesteps.push_back(plan.timesteps[k]);
    add_level(&out, plan.alphas[k], plan.sigmas[k]);
  }
  if (open) add_level(&out, plan.alphas.back(), plan.sigmas.back());
  out.at_end = plan.at_end;
  return out;
}

}  // namespace

std::string_view name_of(SamplerKind kind) { return kSamplers[static_cast<size_t>(kind)].name; }
std::string_view name_of(Spacing spacing) { return kSpacings[static_cast<size_t>(spacing)].name; }
std::span<const config::Choice> sampler_choices() { return kSamplers; }
std::span<const config::Choice> spacing_choices() { return kSpacings; }

void describe(config::Visitor& v, SamplingConfig& c) {
  v.field("sampler", c.sampler, "how x moves from one noise level to the next", kSamplers);
  v.field("steps", c.steps, "noise levels; network calls are one a step (heun: two)", config::kAtLeastOne);
  v.field("spacing", c.spacing, "where the noise levels lie", kSpacings);
  v.field("range", c.range, "karras, exponential: the spacing whose ends they lie between", std::span(kSpacings).first(3));
  v.field("steps_offset", c.steps_offset, "leading: added to every timestep (Stable Diffusion: 1)", config::kNonNegative);
  v.field("eta", c.eta, "ddim: fresh noise in every step, 0 none, 1 as much as ancestral sampling", config::kUnit);
  v.field("end_clean", c.end_clean, "the last step goes to no noise at all; false: to that of the first training timestep");
  v.field("clip_sample", c.clip_sample, "predicted pixels are held within +- this; 0: not", config::kNonNegative);
  v.field("large_variance", c.large_variance, "ddpm: the larger of the two variances of Ho et al.");
  v.field("lower_order_final", c.lower_order_final, "dpmpp_2m: first order in the last of fewer than 15 steps");
  v.field("original_steps", c.original_steps, "lcm: steps of the grid it was distilled on", config::kAtLeastOne);
  v.field("timestep_scaling", c.timestep_scaling, "lcm: of the boundary condition at t = 0; 0: none (DMD2)", config::kNonNegative);
  v.field("sigma_min", c.sigma_min, "karras, exponential: smallest noise ratio; 0: from range", config::kNonNegative);
  v.field("sigma_max", c.sigma_max, "karras, exponential: largest noise ratio; 0: from range", config::kNonNegative);
  v.field("timesteps", c.timesteps, "exactly these timesteps, falling, instead of steps and spacing", config::kNonNegative);
  v.field("tokens", c.tokens, "flow with dynamic_shift: image tokens of the network; pipelines set it", config::kNonNegative);
}

// Infinite at pure noise of flow and of a zero terminal SNR.
double SamplingPlan::ratio(int64_t i) const { return sigmas[static_cast<size_t>(i)] / alphas[static_cast<size_t>(i)]; }

SamplingPlan make_plan(const Schedule& schedule, const SamplingConfig& config) {
  check_sampling(config);
  SamplingPlan plan = schedule.discrete()                                 ? table_plan(schedule, config)
                      : schedule.config().kind == ScheduleKind::flow ? flow_plan(schedule, config)
                                                                          : edm_plan(schedule, config);
  for (size_t i = 0; i + 1 < plan.sigmas.size(); ++i)
    if (plan.sigmas[i + 1] * plan.alphas[i] > plan.sigmas[i] * plan.alphas[i + 1] * (1.0 + 1e-6))
      fail<ConfigError>("sampling: noise level {} of the plan is above the one before (timestep {}): fewer steps, or end_clean", i + 1,
                        plan.timesteps[i]);
  plan.whole_steps = plan.steps();
  const Spacing ends = config.spacing == Spacing::karras || config.spacing == Spacing::exponential ? config.range : config.spacing;
  if (schedule.discrete() && of_k_diffusion(config.sampler) && ends != Spacing::leading) plan.unit = plan.sigmas.front();
  return plan;
}

double initial_scale(const SamplingPlan& plan) { return plan.unit; }

SamplingPlan slice_plan(const SamplingPlan& plan, double from_ratio, double to_ratio) {
  const bool all = std::isinf(from_ratio);  // the pure noise of flow, too
  return part_of(plan, [&](int64_t i) { return (all || plan.ratio(i) < from_ratio) && plan.ratio(i) >= to_ratio; });
}

SamplingPlan base_part(const SamplingPlan& plan, double cut) {
  return part_of(plan, [&](int64_t i) { return plan.timesteps[static_cast<size_t>(i)] >= cut; });
}

SamplingPlan refiner_part(const SamplingPlan& plan, double cut) {
  return part_of(plan, [&](int64_t i) { return plan.timesteps[static_cast<size_t>(i)] < cut; });
}

double cut_timestep(const Schedule& schedule, double denoised) {
  if (!(denoised >= 0.0 && denoised <= 1.0)) fail<ConfigError>("sampling: a share of the timesteps must be in [0, 1], not {}", denoised);
  const double T = static_cast<double>(schedule.config().num_train_timesteps), cut = T - denoised * T;
  return schedule.discrete() ? std::nearbyint(cut) : cut;
}

SamplingPlan continue_plan(const Schedule& schedule, const SamplingPlan& plan, double ratio) {
  FEW_CHECK(ratio > 0.0, "a plan that goes on from noise ratio {}", ratio);
  const SamplingPlan rest = part_of(plan, [&](int64_t i) { return plan.ratio(i) < ratio * (1.0 - 1e-9); });
  SamplingPlan out;
  out.timesteps.push_back(schedule.timestep_of_ratio(ratio));
  if (schedule.config().kind == ScheduleKind::flow) {
    const double sigma = std::isinf(ratio) ? 1.0 : ratio / (1.0 + ratio);
    add_level(&out, 1.0 - sigma, sigma);
  } else {
    add_ratio(&out, std::min(ratio, 1e12), data_of(schedule));
  }
  out.timesteps.insert(out.timesteps.end(), rest.timesteps.begin(), rest.timesteps.end());
  const SamplingPlan& tail = rest.timesteps.empty() ? plan : rest;
  const auto first = rest.timesteps.empty() ? -1 : 0;
  out.alphas.insert(out.alphas.end(), first < 0 ? tail.alphas.end() - 1 : tail.alphas.begin(), tail.alphas.end());
  out.sigmas.insert(out.sigmas.end(), first < 0 ? tail.sigmas.end() - 1 : tail.sigmas.begin(), tail.sigmas.end());
  out.end_timestep = plan.end_timestep;
  out.whole_steps = out.steps();
  return out;
}

}  // namespace fewstep::diffusion
