#include "src/diffusion/student_schedule.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "src/base/error.h"

namespace fewstep::diffusion {
namespace {

constexpr config::Choice kStudents[] = {{"ode", static_cast<int>(StudentKind::ode)}, {"stochastic", static_cast<int>(StudentKind::stochastic)}};
constexpr double kLevelTolerance = 1e-4;    // of alpha and sigma, between our levels and a scheduler's
constexpr double kTimestepTolerance = 1e-6; // a share of the axis: rungs on a grid

double student_shift(const StudentScheduleConfig& c, const Schedule& schedule) {
  const ScheduleConfig& s = schedule.config();
  if (s.kind != ScheduleKind::flow) {
    if (c.shift != 0.0 && c.shift != 1.0)
      fail<ConfigError>("student: shift {} suits flow, not a {} schedule: leave it out", c.shift, name_of(s.kind));
    return 1.0;
  }
  if (c.shift > 0.0) return c.shift;
  if (s.dynamic_shift)
    fail<ConfigError>("student: shift must be given, for example 3: the schedule's own depends on the number of image tokens "
                      "(dynamic_shift), and a student has the same rungs at every size");
  return s.shift;
}

std::vector<double> even_rungs(const StudentScheduleConfig& c, const Schedule& schedule, double shift) {
  const int64_t T = schedule.config().num_train_timesteps, N = c.steps;
  if (N < 1) fail<ConfigError>("student: steps is {}: at least 1", N);
  if (schedule.discrete() && T % N != 0) {
    int64_t below = N, above = N;  // T itself divides T, and so does 1
    while (T % below != 0) --below;
    while (above < T && T % above != 0) ++above;
    fail<ConfigError>("student: {} steps do not divide the {} training timesteps: take {} or {} steps, or give `timesteps` one by one",
                      N, T, below, above);
  }
  std::vector<double> out;
  for (int64_t k = 0; k < N; ++k) {
    const double share = static_cast<double>(N - k) / static_cast<double>(N);
    if (schedule.discrete())
      out.push_back(static_cast<double>(T - 1 - k * (T / N)));
    else
      out.push_back(static_cast<double>(T) * Schedule::shifted(share, shift));
  }
  return out;
}

void check_rungs(std::span<const double> rungs, const Schedule& schedule) {
  const double last = schedule.max_timestep();
  for (size_t k = 0; k < rungs.size(); ++k) {
    const double t = rungs[k];
    if (!(t >= 0.0 && t <= last))
      fail<ConfigError>("student: timesteps: rung {} is {}, outside the schedule's [0, {}]", k, t, last);
    if (k > 0 && t >= rungs[k - 1])
      fail<ConfigError>("student: timesteps must fall: rung {} is {} after {}", k, t, rungs[k - 1]);
    if (schedule.discrete() && t != std::floor(t))
      fail<ConfigError>("student: timesteps: rung {} is {}: a {} schedule has whole timesteps", k, t, name_of(schedule.config().kind));
    if (!(schedule.sigma(t) > 0.0))
      fail<ConfigError>("student: timesteps: rung {} is {}, where there is no noise to remove: leave it out", k, t);
  }
}

std::string levels_text(const SamplingPlan& plan) { return fmt::format("[{:.4f}]", fmt::join(plan.sigmas, ", ")); }

// Euler, DDIM without noise and flow's Euler are one sampler on equal levels; stochastic: only x0, then fresh noise.
bool same_course(StudentKind student, const SamplingConfig& s) {
  if (student == StudentKind::stochastic) return s.sampler == SamplerKind::lcm;
  return s.sampler == SamplerKind::euler || s.sampler == SamplerKind::flow_euler || (s.sampler == SamplerKind::ddim && s.eta == 0.0);
}

}  // namespace

std::string_view name_of(StudentKind kind) { return kStudents[static_cast<size_t>(kind)].name; }

void describe(config::Visitor& v, StudentScheduleConfig& c) {
  v.field("steps", c.steps, "network calls of the student; must divide a beta schedule's training timesteps", config::kAtLeastOne);
  v.field("timesteps", c.timesteps, "exactly these rungs, falling, instead of steps", config::kNonNegative);
  v.field("shift", c.shift, "flow: rungs k / steps moved towards noise by it; 0: as the schedule's shift", config::kNonNegative);
  v.field("student", c.student, "ode: goes on with the noise it predicts; stochastic: with fresh noise", kStudents);
}

StudentSchedule::StudentSchedule(const StudentScheduleConfig& config, const Schedule& schedule)
    : config_(config), schedule_(schedule), shift_(student_shift(config, schedule)) {
  const std::vector<double> rungs = config.timesteps.empty() ? even_rungs(config, schedule, shift_) : config.timesteps;
  check_rungs(rungs, schedule);
  config_.steps = static_cast<int64_t>(rungs.size());
  plan_.timesteps = rungs;
  plan_ = make_plan(schedule, sampling());
}

double StudentSchedule::alpha(int64_t k) const { return plan_.alphas.at(static_cast<size_t>(k)); }
double StudentSchedule::sigma(int64_t k) const { return plan_.sigmas.at(static_cast<size_t>(k)); }
double StudentSchedule::timestep(int64_t k) const { return k == steps() ? 0.0 : plan_.timesteps.at(static_cast<size_t>(k)); }

int64_t StudentSchedule::draw_rung(double uniform) const {
  FEW_CHECK(uniform >= 0.0 && uniform < 1.0, "a rung drawn with {}", uniform);
  return std::min(static_cast<int64_t>(uniform * static_cast<double>(steps())), steps() - 1);
}

SamplingConfig StudentSchedule::sampling() const {
  SamplingConfig out;
  out.steps = plan_.steps();
  out.timesteps = plan_.timesteps;
  out.timestep_scaling = 0.0;
  out.sampler = config_.student == StudentKind::stochastic                       ? SamplerKind::lcm
                : schedule_.config().kind == ScheduleKind::flow ? SamplerKind::flow_euler
                                                                 : SamplerKind::ddim;
  return out;
}

SamplingPlan StudentSchedule::until(int64_t k) const {
  FEW_CHECK(k >= 0 && k <= steps(), "rung {} of {}", k, steps());
  SamplingPlan out = plan_;
  if (k == steps()) return out;
  const auto n = static_cast<std::ptrdiff_t>(k);
  out.timesteps.erase(out.timesteps.begin() + n, out.timesteps.end());
  out.alphas.erase(out.alphas.begin() + n + 1, out.alphas.end());
  out.sigmas.erase(out.sigmas.begin() + n + 1, out.sigmas.end());
  out.end_timestep = timestep(k);
  out.at_end = false;
  if (k == 0) out.alphas.clear(), out.sigmas.clear();  // a plan without steps has no levels
  return out;
}

std::vector<int64_t> StudentSchedule::phase_edges(std::span<const double> grid) const {
  const double near = kTimestepTolerance * static_cast<double>(schedule_.config().num_train_timesteps);
  FEW_CHECK(!grid.empty() && std::is_sorted(grid.begin(), grid.end()), "a solver grid of {} points must rise", grid.size());
  if (std::abs(grid.back() - timestep(0)) > near)
    fail<ConfigError>("student: the solver grid starts at timestep {} and the student at {}: phases need both at one place", grid.back(),
                      timestep(0));
  std::vector<int64_t> edges = {0};
  for (int64_t k = steps() - 1; k > 0; --k) {
    const auto it = std::lower_bound(grid.begin(), grid.end(), timestep(k) - near);
    if (it == grid.end() || std::abs(*it - timestep(k)) > near)
      fail<ConfigError>("student: rung {} at timestep {} is not on the solver grid of {} steps (next above: {}): take a multiple of the "
                        "{} steps of the student, or another rung", k, timestep(k), grid.size(), it == grid.end() ? grid.back() : *it, steps());
    edges.push_back(it - grid.begin() + 1);
  }
  return edges;
}

void StudentSchedule::check_scheduler(const SchedulerConfig& scheduler, std::string_view where, int64_t tokens) const {
  SamplingConfig s = scheduler.sampling;
  s.steps = steps();
  s.timesteps.clear();
  const ScheduleConfig& theirs = scheduler.schedule;
  // One shift at every resolution needs no number of tokens.
  s.tokens = tokens > 0 ? tokens : theirs.dynamic_shift && theirs.base_shift == theirs.max_shift ? theirs.base_length : 0;
  if (!same_course(config_.student, s))
    fail<ConfigError>("{}: it samples with {} (eta {}), and the student was trained as {}: {}", where, name_of(s.sampler), s.eta,
                      name_of(config_.student), config_.student == StudentKind::ode ? "take ddim, euler or flow_euler" : "take lcm");
  if (s.sampler == SamplerKind::lcm && s.original_steps < steps())
    fail<ConfigError>("{}: a grid of original_inference_steps {} has no {} steps", where, s.original_steps, steps());
  const SamplingPlan plan = make_plan(Schedule(theirs), s);
  double error = 0.0;
  for (size_t i = 0; i < plan_.sigmas.size(); ++i)
    error = std::max({error, std::abs(plan.sigmas[i] - plan_.sigmas[i]), std::abs(plan.alphas[i] - plan_.alphas[i])});
  if (!(error <= kLevelTolerance))
    fail<ConfigError>("{}: with {} steps its sigmas are {} (timesteps {:g}), but the student was trained at {} (timesteps {:g}): export "
                      "the student's own scheduler, or pass these timesteps to the pipeline",
                      where, steps(), levels_text(plan), fmt::join(plan.timesteps, ", "), levels_text(plan_), fmt::join(plan_.timesteps, ", "));
  // c_skip of the boundary condition, which the student was trained without.
  const double scaled = plan.timesteps.back() * s.timestep_scaling, skip = 0.25 / (scaled * scaled + 0.25);
  if (s.sampler == SamplerKind::lcm && s.timestep_scaling > 0.0 && skip > kLevelTolerance)
    fail<ConfigError>("{}: timestep_scaling {} mixes {:.2g} of x into x0 at timestep {}: raise it", where, s.timestep_scaling, skip,
                      plan.timesteps.back());
}

SchedulerConfig StudentSchedule::scheduler(Prediction prediction) const {
  SchedulerConfig out{.schedule = schedule_.config(), .prediction = prediction, .sampling = sampling()};
  out.sampling.timesteps.clear();
  out.sampling.spacing = Spacing::trailing;
  out.sampling.original_steps = steps();
  if (schedule_.config().kind == ScheduleKind::flow) {
    ScheduleConfig& s = out.schedule;
    s.shift = 1.0;
    s.dynamic_shift = true;  // the pipeline's sigmas 1 .. 1 / n, exp(mu) = shift at every size
    s.shift_kind = ShiftKind::exponential;
    s.base_shift = s.max_shift = std::log(shift_);
    // Explicit rungs: the shift may fall short of the last one, which a stretch reaches.
    s.shift_terminal = config_.timesteps.empty() || steps() < 2 ? 0.0 : sigma(steps() - 1);
  }
  check_scheduler(out, "student: no scheduler of diffusers has these rungs by itself");
  return out;
}

}  // namespace fewstep::diffusion
