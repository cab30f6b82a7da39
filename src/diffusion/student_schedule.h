// The noise levels of a few-step student: one axis that the phases of its warm start, the rungs of its distillation, its sampler
// and the scheduler it is exported with all read. A student is only as good as its levels: SDXL's Euler default or Qwen-Image's
// stretched shift put two steps at other places than it was trained at.
#pragma once
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "src/diffusion/scheduler_config.h"

namespace fewstep::diffusion {

// How the student goes on from its x0: ode re-uses the noise implied by its own prediction, stochastic draws fresh noise (DMD2).
enum class StudentKind { ode, stochastic };
std::string_view name_of(StudentKind kind);

struct StudentScheduleConfig {
  int64_t steps = 4;
  std::vector<double> timesteps = {};  // exactly these rungs, falling, instead of steps
  double shift = 0.0;                  // flow: rungs k / steps are pushed through it; 0: the schedule's own
  StudentKind student = StudentKind::stochastic;
};
void describe(config::Visitor& v, StudentScheduleConfig& c);

// Rungs by default, T training timesteps, N steps:
//   beta schedules  T - 1 - k T / N: 4 of 1000: 999, 749, 499, 249 (DMD2)
//   flow            T shifted(1 - k / N): shift 3, 4 steps: T (1, 0.9, 0.75, 0.5); shift 2.5, 2 steps: T (1, 0.714)
//   edm             T (1 - k / N)
// The first rung is given pure noise, whatever its timestep (SDXL in one step: 399).
class StudentSchedule {
 public:
  // ConfigError: steps that do not divide the timesteps; rungs that do not fall, lie outside the schedule, are without noise or,
  // for beta schedules, not whole; a flow shift that is not known before the number of image tokens is.
  StudentSchedule(const StudentScheduleConfig& config, const Schedule& schedule);

  const StudentScheduleConfig& config() const { return config_; }
  const Schedule& schedule() const { return schedule_; }
  int64_t steps() const { return plan_.steps(); }
  double shift() const { return shift_; }  // of flow; 1 for others
  std::span<const double> timesteps() const { return plan_.timesteps; }
  // Levels of rung k in [0, steps], `steps` the clean end.
  double alpha(int64_t k) const;
  double sigma(int64_t k) const;
  double timestep(int64_t k) const;  // 0 at the end
  static constexpr int64_t terminal() { return 0; }  // the rung that starts from pure noise
  int64_t draw_rung(double uniform) const;  // uniform in [0, 1). One number for all ranks: they must run equally many steps

  // The sampler that visits exactly these levels: ddim or flow_euler, or lcm with x0 as it is.
  SamplingConfig sampling() const;
  const SamplingPlan& plan() const { return plan_; }
  SamplingPlan until(int64_t k) const;  // the steps that lead from the first rung to rung k

  // Of a grid of timesteps, rising, with the clean end before its first: the indices at which a phase begins, rising. A phase
  // from edge e ends at the level of grid[e - 1], which is a rung (e = 0: clean). ConfigError: a rung that is not on the grid.
  std::vector<int64_t> phase_edges(std::span<const double> grid) const;

  // ConfigError naming both lists unless `scheduler`, asked for steps() steps and told no timesteps, gives these levels and this
  // kind of sampler. tokens: see SamplingConfig.
  void check_scheduler(const SchedulerConfig& scheduler, std::string_view where, int64_t tokens = 0) const;
  // One that passes, to be exported: DDIM trailing, LCM on a grid of steps(), or flow's Euler with ln(shift) at every resolution.
  // ConfigError for explicit rungs that no scheduler gives unless it is told them.
  SchedulerConfig scheduler(Prediction prediction) const;

 private:
  StudentScheduleConfig config_;
  Schedule schedule_;
  double shift_ = 1.0;
  SamplingPlan plan_;
};

}  // namespace fewstep::diffusion
