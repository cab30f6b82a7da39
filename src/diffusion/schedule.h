// Noise schedules on one time axis: the training timestep t in [0, num_train_timesteps], which is also what the network is
// told. x_t = alpha(t) x0 + sigma(t) eps. Beta schedules (Ho et al. 2020; Nichol & Dhariwal 2021; zero terminal SNR: Lin et
// al. 2024, Algorithm 1) are tables over integer t, made in float32 as diffusers makes them and kept in float64. Flow matching
// (Lipman et al. 2023) has sigma = t / num_train_timesteps, alpha = 1 - sigma. EDM (Karras et al. 2022) has ln of the noise
// ratio linear in t and x_t scaled to unit variance, as its network sees it.
#pragma once
#include <cstdint>
#include <string_view>
#include <vector>

#include "src/config/visitor.h"
#include "src/tensor/tensor.h"

namespace fewstep::diffusion {

enum class ScheduleKind { linear, scaled_linear, cosine, flow, edm };
std::string_view name_of(ScheduleKind kind);

enum class ShiftKind { exponential, linear };  // of resolution-dependent shifting: exp(mu), or mu itself

struct ScheduleConfig {
  ScheduleKind kind = ScheduleKind::scaled_linear;
  int64_t num_train_timesteps = 1000;
  double beta_start = 0.00085, beta_end = 0.012;  // linear, scaled_linear
  bool zero_terminal_snr = false;                 // beta schedules: the last timestep is pure noise
  // flow: how shares u of the axis are moved towards noise, s u / (1 + (s - 1) u); sigma(t) itself never changes.
  double shift = 1.0;
  bool dynamic_shift = false;  // s = exp(mu) or mu, mu linear in the number of image tokens, instead of `shift`
  ShiftKind shift_kind = ShiftKind::exponential;
  double base_shift = 0.5, max_shift = 1.15;
  int64_t base_length = 256, max_length = 4096;
  double shift_terminal = 0.0;  // plans are stretched so that their last sigma is this one; 0: not
  double sigma_min = 0.002, sigma_max = 80.0, sigma_data = 1.0;  // edm
};
void describe(config::Visitor& v, ScheduleConfig& c);

class Schedule {
 public:
  explicit Schedule(const ScheduleConfig& config);  // ConfigError for settings that make no schedule
  const ScheduleConfig& config() const { return config_; }
  bool discrete() const;         // t is an integer in training, 0 .. num_train_timesteps - 1
  double max_timestep() const;   // the noisiest: num_train_timesteps - 1, or num_train_timesteps for flow and edm

  // t: int64 or floating [B], any device -> float64 [B] there. Between the integers of a table the noise ratio is linear.
  Tensor alpha(const Tensor& t) const;
  Tensor sigma(const Tensor& t) const;
  Tensor snr(const Tensor& t) const;  // (alpha / sigma)^2; 0 at a zero terminal SNR, infinite at sigma = 0

  double alpha(double t) const;
  double sigma(double t) const;
  // sigma / alpha, the sigma of k-diffusion. With zero terminal SNR the last one is 4096 and not infinite (alpha^2 = 2^-24, as
  // in diffusers); infinite at flow's t = max.
  double noise_ratio(double t) const;
  double timestep_of_ratio(double ratio) const;  // the inverse, clamped to the axis

  // flow: u in [0, 1] -> shifted by the static shift, and back. Others: u itself.
  double shifted(double u) const { return shifted(u, config_.shift); }
  double unshifted(double u) const { return shifted(u, 1.0 / config_.shift); }
  static double shifted(double u, double shift) { return shift * u / (1.0 + (shift - 1.0) * u); }
  // The shift for an image of so many tokens: `shift`, or the dynamic one. ConfigError when tokens <= 0 are given to that.
  double shift_for(int64_t tokens) const;
  double shift_of_mu(double mu) const;

  // float32 [num_train_timesteps], of beta schedules only: products of (1 - beta), the last one 0 with zero terminal SNR.
  const Tensor& alphas_cumprod() const { return alphas_cumprod_; }

 private:
  ScheduleConfig config_;
  Tensor alphas_cumprod_;
  Tensor alpha_table_, sigma_table_, ratio_table_;  // float64 [T]
  std::vector<double> ratios_;                      // the last one again, for scalars
  double ratio_of(double t) const;
};

// alpha(t) x0 + sigma(t) noise in x0's type. x0, noise: [B, ...]; t: [B].
Tensor add_noise(const Schedule& schedule, const Tensor& x0, const Tensor& noise, const Tensor& t);

}  // namespace fewstep::diffusion
