// Phased consistency (Wang et al. 2024, "Phased Consistency Models"): in each phase of a solver's grid, the student's jump to
// the phase's end is the same from two neighbouring points of the teacher's trajectory. Pure functions; networks are called by
// the trainer:
//   i ~ U{0 .. n-1};  x = alpha_i x0 + sigma_i eps
//   online  = jump(student(x, t_i), i -> end(i))
//   x_prev  = teacher_step(teacher(x, t_i), i -> i - 1)                      no gradient
//   target  = edge ? x_prev : jump(student(x_prev, t_{i-1}), i - 1 -> end(i))  no gradient, the same weights, no moving average
//   loss    = distance(online, target)
#pragma once
#include <cstdint>
#include <vector>

#include "src/diffusion/student_schedule.h"

namespace fewstep::diffusion {

enum class ConsistencyDistance { huber, l2 };
struct ConsistencyConfig {
  int64_t solver_steps = 40;              // of the teacher's grid: a multiple of the student's steps
  double cfg_min = 7.0, cfg_max = 8.0;    // guidance of the teacher, uniform between; 1: none. PCM's own w is this less 1
  ConsistencyDistance distance = ConsistencyDistance::huber;
  double huber_c = 1e-3;
};
void describe(config::Visitor& v, ConsistencyConfig& c);

struct NoiseLevels {
  Tensor timestep, alpha, sigma;  // float64 [B]; timestep int64 for discrete schedules
};

// n points, index i rising with noise; point -1 is the clean end (sigma 0, where the student's sampler ends; PCM: timestep 0).
// Within a phase the points are even on the axis, for flow before the shift: with the default rungs (i + 1) T / n - 1, as PCM.
class SolverGrid {
 public:
  // ConfigError: solver_steps that are no multiple of the student's steps, or more than the timesteps of a phase.
  SolverGrid(const StudentSchedule& student, int64_t solver_steps);
  int64_t steps() const { return static_cast<int64_t>(timesteps_.size()); }
  int64_t phases() const { return static_cast<int64_t>(edges_.size()); }
  const std::vector<double>& timesteps() const { return timesteps_; }  // [n] rising
  const std::vector<int64_t>& edges() const { return edges_; }         // first points of the phases, rising from 0
  int64_t edge(int64_t i) const;                                       // the last edge <= i

  // i: int64 [B] in [0, n), CPU or device of the wanted result.
  Tensor draw(const Tensor& uniform) const;       // [B] in [0, 1) -> int64 [B]
  NoiseLevels at(const Tensor& i) const;          // also i = -1
  NoiseLevels before(const Tensor& i) const;      // i - 1: where the teacher's step ends
  NoiseLevels end(const Tensor& i) const;         // where i's phase ends: a rung of the student, or clean
  Tensor is_edge(const Tensor& i) const;          // bool [B]
  // A level between the phase's end and its start, for the discriminator: t ~ U[end, end + length). uniform: [B] in [0, 1).
  NoiseLevels adversarial(const Tensor& i, const Tensor& uniform) const;

 private:
  NoiseLevels levels_of(const Tensor& timestep, const Tensor& clean) const;
  Schedule schedule_;
  std::vector<double> timesteps_;
  std::vector<int64_t> edges_;
};

// unconditional + scale (conditional - unconditional), scale: [B]. The same on x0, eps and the raw prediction: all are linear.
Tensor guide_each(const Tensor& conditional, const Tensor& unconditional, const Tensor& scale);
// output at x, `from`, carried along a straight line in (x0, eps): DDIM, and Euler for flow. x: [B, ...].
Tensor jump(Prediction prediction, const Tensor& output, const Tensor& x, const NoiseLevels& from, const NoiseLevels& to);
// One step of the guided teacher; unconditional undefined: no guidance.
Tensor teacher_step(Prediction prediction, const Tensor& conditional, const Tensor& unconditional, const Tensor& scale, const Tensor& x,
                    const NoiseLevels& from, const NoiseLevels& to);
// At an edge the student's jump would have no length: x_prev itself. Detached.
Tensor consistency_target(const Tensor& jumped, const Tensor& x_prev, const Tensor& is_edge);
// [B]: mean over a sample of sqrt(d^2 + c^2) - c (Song & Dhariwal 2023), or d^2; float32 at least.
Tensor consistency_loss(const ConsistencyConfig& config, const Tensor& online, const Tensor& target);

// From level `from` to the noisier `to` with the variance that x_to has given x0:
//   r = alpha_to / alpha_from;  r x + sqrt(sigma_to^2 - r^2 sigma_from^2) noise
// which is sqrt(1 - abar_to / abar_from) for abar = alpha^2. PCM's flow code has (sigma_to - sigma_from) / (1 - sigma_from)
// instead, too little noise. ConfigError: `to` is cleaner than `from`.
Tensor renoise(const Tensor& x, const NoiseLevels& from, const NoiseLevels& to, const Tensor& noise);

}  // namespace fewstep::diffusion
