// Distribution matching distillation (Yin et al. 2024, "Improved Distribution Matching Distillation", DMD2): the student's
// samples move along the difference of two scores, a frozen teacher's ("real") and that of a critic trained on the student's own
// samples ("fake"). Pure functions; networks are called by the trainer:
//   rung k, x_in = simulate_student(...);  x0 = student(x_in, t_k)                          gradient only here
//   t ~ score range;  x_t = alpha x0 + sigma eps;  xf = fake(x_t), xr = guided real(x_t)     no gradient
//   student: mean pseudo_loss(x0, reverse_kl_gradient(x0, xf, xr))
//   fake:    mean fake_score_loss(fake(x_t'), ...) with x0 detached and t' over the whole axis
#pragma once
#include <cstdint>
#include <span>

#include "src/diffusion/samplers.h"
#include "src/diffusion/student_schedule.h"

namespace fewstep::diffusion {

struct ScoreRange {
  double min = 0.02, max = 0.98;  // shares of the axis. A low max hides whole modes from a cold student
  double shift = 1.0;             // moves the draw towards noise, s u / (1 + (s - 1) u), before it is held in the range
};
void describe(config::Visitor& v, ScoreRange& c);
// uniform: [B] in [0, 1) -> [B]: int64 in [min T, max T], both included (20 .. 980 of 1000), or float64 for flow and edm.
// ScoreRange{0, 1} is the critic's: all timesteps.
Tensor score_timesteps(const ScoreRange& range, const Schedule& schedule, const Tensor& uniform);

// x0 in float32 at least: at SDXL's last timestep 1 / alpha amplifies the prediction's rounding by 14. alpha, sigma: [B].
Tensor predicted_x0(Prediction prediction, const Tensor& output, const Tensor& x_t, const Tensor& alpha, const Tensor& sigma);
// ... of unconditional + cfg_scale (conditional - unconditional): 1 is the conditional model. unconditional undefined: not guided.
Tensor guided_x0(Prediction prediction, const Tensor& conditional, const Tensor& unconditional, double cfg_scale, const Tensor& x_t,
                 const Tensor& alpha, const Tensor& sigma);

// (fake_x0 - real_x0) / mean over a sample of |x0 - real_x0|, float32 at least, detached. Where the teacher returns a sample as
// it is, the mean counts as kSmallestDistance. Not finite stays so: the loop stops on it.
inline constexpr double kSmallestDistance = 1e-6;
Tensor reverse_kl_gradient(const Tensor& x0, const Tensor& fake_x0, const Tensor& real_x0);
// [B], each sample's mean of g^2 / 2, with d mean(loss) / d x0 = g / numel: 0.5 MSE(x0, x0 - g) without the rounding of x0 - g.
Tensor pseudo_loss(const Tensor& x0, const Tensor& gradient);
// [B], mean squared error of the fake score in the network's own form. x0, noise: what x_t was made of.
Tensor fake_score_loss(Prediction prediction, const Tensor& output, const Tensor& x0, const Tensor& noise, const Tensor& alpha,
                       const Tensor& sigma);

// What the student gets at a rung: its own steps down to there without gradients, exactly as its sampler does them (noise(j) is
// that of step j; an ode student re-uses the noise it predicts, also for this rung). Rung 0: x_T, pure noise, itself.
Tensor simulate_student(const Network& student, Prediction prediction, const StudentSchedule& schedule, const Tensor& x_T,
                        const NoiseSource& noise, int64_t rung);

// Implicit distribution alignment (Ge et al. 2025, SenseFlow): fake <- keep fake + (1 - keep) student, in place, after each of
// the student's steps. 0.97 with 5 critic steps a turn, 0.98 with 10. Both lists in one order.
void align_fake_score(std::span<const Tensor> fake, std::span<const Tensor> student, double keep);

// Sums over samples of mean |xf - xr|, and counts, by t: add over steps and ranks, then divide. Both float64 [bins].
struct ScoreGap {
  Tensor sum, count;
};
ScoreGap score_gap(const Tensor& fake_x0, const Tensor& real_x0, const Tensor& t, const Schedule& schedule, int64_t bins);
// Norm of `of` over that of `to`: how hard one loss pulls at x0, or at a parameter, against another. 0 if both are 0.
double gradient_ratio(const Tensor& of, const Tensor& to);

}  // namespace fewstep::diffusion
