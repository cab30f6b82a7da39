#include "src/diffusion/consistency.h"

#include <algorithm>
#include <cmath>

#include "src/base/error.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::diffusion {
namespace {

constexpr config::Choice kDistances[] = {{"huber", static_cast<int>(ConsistencyDistance::huber)}, {"l2", static_cast<int>(ConsistencyDistance::l2)}};

Tensor each_like(const Tensor& per_sample, const Tensor& x) {
  FEW_CHECK(per_sample.dim() == 1 && per_sample.size(0) == x.size(0), "one level for each of {} samples, got {}", x.size(0), per_sample.numel());
  return append_dims(per_sample.to(x.device(), x.scalar_type()), x.dim());
}

Tensor float_at_least(const Tensor& x) { return x.scalar_type() == at::kDouble ? x : x.to(at::kFloat); }

// Points of one phase, rising, above `low` (a rung, or the clean end) up to `high`.
void add_phase(const StudentSchedule& student, double low, double high, int64_t count, std::vector<double>* out) {
  const Schedule& schedule = student.schedule();
  const bool flow = schedule.config().kind == ScheduleKind::flow, whole = schedule.discrete();
  const double T = static_cast<double>(schedule.config().num_train_timesteps), shift = student.shift();
  const auto plain = [&](double t) { return flow ? T * Schedule::shifted(t / T, 1.0 / shift) : t; };
  const double from = plain(low), to = plain(high);
  for (int64_t j = 1; j <= count; ++j) {
    double t = from + (to - from) * static_cast<double>(j) / static_cast<double>(count);
    if (flow) t = T * Schedule::shifted(t / T, shift);
    if (whole) t = std::nearbyint(t);
    out->push_back(j == count ? high : t);
  }
}

}  // namespace

void describe(config::Visitor& v, ConsistencyConfig& c) {
  v.field("solver_steps", c.solver_steps, "steps of the teacher's grid: a multiple of the student's", config::kAtLeastOne);
  v.field("cfg_min", c.cfg_min, "least guidance of the teacher: unconditional + cfg (conditional - unconditional)", config::kNonNegative);
  v.field("cfg_max", c.cfg_max, "most guidance; drawn uniformly between", config::kNonNegative);
  v.check(c.cfg_min <= c.cfg_max, "cfg_max", "must not be below cfg_min");
  v.field("distance", c.distance, "between the student's two jumps", kDistances);
  v.field("huber_c", c.huber_c, "huber: squares below it, absolute values above", config::kPositive);
}

SolverGrid::SolverGrid(const StudentSchedule& student, int64_t solver_steps) : schedule_(student.schedule()) {
  const int64_t N = student.steps();
  if (solver_steps < N || solver_steps % N != 0)
    fail<ConfigError>("consistency: solver_steps {} is no multiple of the student's {} steps: take {}", solver_steps, N,
                      std::max<int64_t>(1, (solver_steps + N / 2) / N) * N);
  for (int64_t k = N - 1; k >= 0; --k) {
    const double low = k + 1 < N ? student.timestep(k + 1) : schedule_.discrete() ? -1.0 : 0.0;
    add_phase(student, low, student.timestep(k), solver_steps / N, &timesteps_);
  }
  for (size_t i = 0; i < timesteps_.size(); ++i)
    if (timesteps_[i] < 0.0 || (i > 0 && timesteps_[i] <= timesteps_[i - 1]))
      fail<ConfigError>("consistency: solver_steps {} are more than the timesteps of the phase at {}: fewer", solver_steps, timesteps_[i]);
  edges_ = student.phase_edges(timesteps_);
}

int64_t SolverGrid::edge(int64_t i) const {
  FEW_CHECK(i >= 0 && i < steps(), "point {} of a solver grid of {}", i, steps());
  return *(std::upper_bound(edges_.begin(), edges_.end(), i) - 1);
}

namespace {

// table[i], i: int64 [B].
Tensor looked_up(const std::vector<double>& table, const Tensor& i) {
  return at::tensor(table, at::kDouble).to(i.device()).index_select(0, i);
}
Tensor phase_end_of(const SolverGrid& grid, const Tensor& i) {
  std::vector<int64_t> ends;
  for (int64_t j = 0; j < grid.steps(); ++j) ends.push_back(grid.edge(j) - 1);
  return at::tensor(ends, at::kLong).to(i.device()).index_select(0, i);
}

}  // namespace

NoiseLevels SolverGrid::levels_of(const Tensor& timestep, const Tensor& clean) const {
  const Tensor t = schedule_.discrete() ? timestep.round().to(at::kLong) : timestep;
  const double data = schedule_.config().kind == ScheduleKind::edm ? schedule_.config().sigma_data : 1.0;
  return {t, schedule_.alpha(t).masked_fill(clean, 1.0 / data), schedule_.sigma(t).masked_fill(clean, 0.0)};
}

Tensor SolverGrid::draw(const Tensor& uniform) const {
  return uniform.to(at::kDouble).mul(static_cast<double>(steps())).floor().to(at::kLong).clamp(0, steps() - 1);
}

NoiseLevels SolverGrid::at(const Tensor& i) const {
  FEW_CHECK(i.dim() == 1 && i.scalar_type() == at::kLong, "points of a solver grid are int64 [B]");
  const Tensor clean = i.lt(0);
  return levels_of(looked_up(timesteps_, i.clamp_min(0)).masked_fill(clean, 0.0), clean);
}

NoiseLevels SolverGrid::before(const Tensor& i) const { return at(i - 1); }
NoiseLevels SolverGrid::end(const Tensor& i) const { return at(phase_end_of(*this, i)); }
Tensor SolverGrid::is_edge(const Tensor& i) const { return phase_end_of(*this, i).eq(i - 1); }

NoiseLevels SolverGrid::adversarial(const Tensor& i, const Tensor& uniform) const {
  std::vector<double> low, high;  // of each point's phase
  for (int64_t j = 0; j < steps(); ++j) {
    const auto next = std::upper_bound(edges_.begin(), edges_.end(), j);
    const int64_t e = edge(j), top = (next == edges_.end() ? steps() : *next) - 1;
    low.push_back(e == 0 ? 0.0 : timesteps_[static_cast<size_t>(e - 1)]);
    high.push_back(timesteps_[static_cast<size_t>(top)]);
  }
  const Tensor from = looked_up(low, i), to = looked_up(high, i);
  Tensor t = from + uniform.to(from.device(), at::kDouble) * (to - from);
  if (schedule_.discrete()) t = t.floor();
  return levels_of(t, at::zeros_like(t, at::kBool));
}

Tensor guide_each(const Tensor& conditional, const Tensor& unconditional, const Tensor& scale) {
  FEW_CHECK(conditional.sizes() == unconditional.sizes(), "guidance between {} and {} values", conditional.numel(), unconditional.numel());
  return unconditional + each_like(scale, conditional) * (conditional - unconditional);
}

Tensor jump(Prediction prediction, const Tensor& output, const Tensor& x, const NoiseLevels& from, const NoiseLevels& to) {
  const Tensor wide_x = float_at_least(x);
  const Denoised parts = split_prediction(prediction, output.to(wide_x.scalar_type()), wide_x, from.alpha, from.sigma);
  return each_like(to.alpha, wide_x) * parts.x0 + each_like(to.sigma, wide_x) * parts.noise;
}

Tensor teacher_step(Prediction prediction, const Tensor& conditional, const Tensor& unconditional, const Tensor& scale, const Tensor& x,
                    const NoiseLevels& from, const NoiseLevels& to) {
  const Tensor output = unconditional.defined() ? guide_each(float_at_least(conditional), float_at_least(unconditional), scale) : conditional;
  return jump(prediction, output, x, from, to).detach();
}

Tensor consistency_target(const Tensor& jumped, const Tensor& x_prev, const Tensor& is_edge) {
  return at::where(append_dims(is_edge, x_prev.dim()), x_prev, jumped).detach();
}

Tensor consistency_loss(const ConsistencyConfig& config, const Tensor& online, const Tensor& target) {
  FEW_CHECK(online.sizes() == target.sizes(), "a student's jump of {} values and a target of {}", online.numel(), target.numel());
  const Tensor square = (float_at_least(online) - float_at_least(target)).square();
  const double c = config.huber_c;
  const Tensor each = config.distance == ConsistencyDistance::l2 ? square : (square + c * c).sqrt() - c;
  return each.flatten(1).mean(1);
}

Tensor renoise(const Tensor& x, const NoiseLevels& from, const NoiseLevels& to, const Tensor& noise) {
  FEW_CHECK(x.sizes() == noise.sizes(), "re-noising {} values with {}", x.numel(), noise.numel());
  const Tensor ratio = to.alpha / from.alpha, variance = to.sigma.square() - (ratio * from.sigma).square();
  if (variance.lt(-1e-9).any().item<bool>())
    fail<ConfigError>("re-noising: a level asked for is cleaner than the one there is (variance {:.3g}): noise cannot be taken away",
                      variance.min().item<double>());
  return each_like(ratio, x) * x + each_like(variance.clamp_min(0.0).sqrt(), x) * noise;
}

}  // namespace fewstep::diffusion
