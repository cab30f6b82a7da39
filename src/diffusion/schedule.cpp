#include "src/diffusion/schedule.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "src/base/error.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::diffusion {
namespace {

constexpr config::Choice kScheduleKinds[] = {{"linear", static_cast<int>(ScheduleKind::linear)},
                                             {"scaled_linear", static_cast<int>(ScheduleKind::scaled_linear)},
                                             {"cosine", static_cast<int>(ScheduleKind::cosine)},
                                             {"flow", static_cast<int>(ScheduleKind::flow)},
                                             {"edm", static_cast<int>(ScheduleKind::edm)}};
constexpr config::Choice kShiftKinds[] = {{"exponential", static_cast<int>(ShiftKind::exponential)},
                                          {"linear", static_cast<int>(ShiftKind::linear)}};
constexpr double kInfinite = std::numeric_limits<double>::infinity();
// Smallest subnormal of float16: what diffusers takes for the last alphas_cumprod where it must not be zero.
constexpr double kSmallestAlphaSquared = 1.0 / (1 << 24);

// [T] float32, operation by operation as diffusers computes them: linspace, square and cumprod round in float32.
Tensor betas_of(const ScheduleConfig& c) {
  const auto type = at::TensorOptions(at::kFloat);
  const int64_t T = c.num_train_timesteps;
  if (c.kind == ScheduleKind::linear) return at::linspace(c.beta_start, c.beta_end, T, type);
  if (c.kind == ScheduleKind::scaled_linear) return at::linspace(std::sqrt(c.beta_start), std::sqrt(c.beta_end), T, type).square();
  const auto alpha_bar = [](double u) {  // squaredcos_cap_v2: Nichol & Dhariwal 2021, eq. 17
    const double cosine = std::cos((u + 0.008) / 1.008 * std::numbers::pi / 2);
    return cosine * cosine;
  };
  Tensor betas = at::empty({T}, at::TensorOptions(at::kDouble));
  const double n = static_cast<double>(T);
  for (int64_t i = 0; i < T; ++i)
    betas.data_ptr<double>()[i] =
        std::min(1.0 - alpha_bar(static_cast<double>(i + 1) / n) / alpha_bar(static_cast<double>(i) / n), 0.999);
  return betas.to(at::kFloat);
}

// Lin et al. 2024, Algorithm 1: sqrt(alphas_cumprod) is moved and stretched so that its last value is 0 and its first stays.
Tensor with_zero_terminal_snr(const Tensor& betas) {
  Tensor root = (1.0 - betas).cumprod(0).sqrt();
  const int64_t T = root.size(0);
  const Tensor first = root[0].clone(), last = root[T - 1].clone();
  root = (root - last) * (first / (first - last));
  const Tensor product = root.square();
  const Tensor alphas = at::cat({product.narrow(0, 0, 1), product.narrow(0, 1, T - 1) / product.narrow(0, 0, T - 1)});
  return 1.0 - alphas;
}

void check_schedule(const ScheduleConfig& c) {
  const std::string_view kind = name_of(c.kind);
  if (c.num_train_timesteps < 2) fail<ConfigError>("schedule: num_train_timesteps is {}: at least 2", c.num_train_timesteps);
  const bool betas = c.kind == ScheduleKind::linear || c.kind == ScheduleKind::scaled_linear;
  if (betas && !(c.beta_start > 0 && c.beta_start <= c.beta_end && c.beta_end < 1))
    fail<ConfigError>("schedule {}: beta_start {} and beta_end {} must be 0 < beta_start <= beta_end < 1", kind, c.beta_start, c.beta_end);
  if (c.zero_terminal_snr && !betas && c.kind != ScheduleKind::cosine)
    fail<ConfigError>("schedule {}: zero_terminal_snr is for beta schedules (linear, scaled_linear, cosine); {}", kind,
                      c.kind == ScheduleKind::flow ? "flow ends in pure noise already" : "raise sigma_max instead");
  if (c.kind == ScheduleKind::flow && !(c.shift > 0)) fail<ConfigError>("schedule flow: shift is {}: above 0", c.shift);
  if (c.kind == ScheduleKind::flow && c.dynamic_shift && c.base_length == c.max_length)
    fail<ConfigError>("schedule flow: base_length and max_length are both {}: dynamic_shift needs two", c.max_length);
  if (c.kind == ScheduleKind::flow && !(c.shift_terminal >= 0 && c.shift_terminal < 1))
    fail<ConfigError>("schedule flow: shift_terminal is {}: a sigma in [0, 1)", c.shift_terminal);
  if (c.kind == ScheduleKind::edm && !(c.sigma_min > 0 && c.sigma_min < c.sigma_max && c.sigma_data > 0))
    fail<ConfigError>("schedule edm: sigma_min {}, sigma_max {}, sigma_data {} must be 0 < sigma_min < sigma_max, 0 < sigma_data",
                      c.sigma_min, c.sigma_max, c.sigma_data);
}

}  // namespace

std::string_view name_of(ScheduleKind kind) { return kScheduleKinds[static_cast<size_t>(kind)].name; }

void describe(config::Visitor& v, ScheduleConfig& c) {
  v.field("kind", c.kind, "betas linear, scaled_linear (Stable Diffusion, SDXL), cosine; flow matching; edm", kScheduleKinds);
  v.field("num_train_timesteps", c.num_train_timesteps, "length of the time axis", config::Range{2});
  v.field("beta_start", c.beta_start, "linear, scaled_linear: first beta", config::Range{0, 1});
  v.field("beta_end", c.beta_end, "linear, scaled_linear: last beta", config::Range{0, 1});
  v.field("zero_terminal_snr", c.zero_terminal_snr,
          "beta schedules: rescale so that the last timestep is pure noise; needs v_prediction or sample");
  v.field("shift", c.shift, "flow: shares u of the axis become s u / (1 + (s - 1) u); above 1: more noise", config::kPositive);
  v.field("dynamic_shift", c.dynamic_shift, "flow: plans take their shift from the number of image tokens instead");
  v.field("shift_kind", c.shift_kind, "flow, dynamic: the shift is exp(mu), or mu", kShiftKinds);
  v.field("base_shift", c.base_shift, "flow, dynamic: mu at base_length tokens");
  v.field("max_shift", c.max_shift, "flow, dynamic: mu at max_length tokens");
  v.field("base_length", c.base_length, "flow, dynamic: tokens of the smallest image", config::kAtLeastOne);
  v.field("max_length", c.max_length, "flow, dynamic: tokens of the largest image", config::kAtLeastOne);
  v.field("shift_terminal", c.shift_terminal, "flow: plans are stretched to end at this sigma; 0: not", config::Range{0, 1});
  v.field("sigma_min", c.sigma_min, "edm: noise ratio at t = 0", config::kPositive);
  v.field("sigma_max", c.sigma_max, "edm: noise ratio at the end of the axis", config::kPositive);
  v.field("sigma_data", c.sigma_data, "edm: standard deviation of the data", config::kPositive);
}

Schedule::Schedule(const ScheduleConfig& config) : config_(config) {
  check_schedule(config);
  if (!discrete()) return;
  Tensor betas = betas_of(config);
  if (config.zero_terminal_snr) betas = with_zero_terminal_snr(betas);
  alphas_cumprod_ = (1.0 - betas).cumprod(0);
  const Tensor product = alphas_cumprod_.to(at::kDouble);
  const Tensor positive = config.zero_terminal_snr ? product.clamp_min(kSmallestAlphaSquared) : product;
  alpha_table_ = product.sqrt();
  sigma_table_ = (1.0 - product).sqrt();
  ratio_table_ = ((1.0 - positive) / positive).sqrt();
  ratios_.assign(ratio_table_.data_ptr<double>(), ratio_table_.data_ptr<double>() + ratio_table_.numel());
}

bool Schedule::discrete() const { return config_.kind != ScheduleKind::flow && config_.kind != ScheduleKind::edm; }

double Schedule::max_timestep() const { return static_cast<double>(config_.num_train_timesteps - (discrete() ? 1 : 0)); }

namespace {

// Levels of a continuous schedule as functions of the noise ratio or of the share of the axis; tables between their integers.
Tensor share_of_axis(const Tensor& t, const ScheduleConfig& c) {
  return t.to(at::kDouble).div(static_cast<double>(c.num_train_timesteps)).clamp(0.0, 1.0);
}
Tensor edm_ratio(const Tensor& t, const ScheduleConfig& c) {
  return (share_of_axis(t, c) * std::log(c.sigma_max / c.sigma_min)).exp() * c.sigma_min;
}

struct TableAt {
  Tensor low, high, weight;  // int64, int64, float64, each of t's shape
};
TableAt table_at(const Tensor& t, int64_t length) {
  const Tensor position = t.to(at::kDouble).clamp(0.0, static_cast<double>(length - 1)), low = position.floor();
  return {low.to(at::kLong), low.to(at::kLong).add(1).clamp_max(length - 1), position - low};
}
Tensor between(const Tensor& table, const TableAt& at_) {
  const Tensor values = table.to(at_.low.device());
  return values.take(at_.low) * (1.0 - at_.weight) + values.take(at_.high) * at_.weight;
}
// Whole timesteps read the exact table; between them the noise ratio is linear (as diffusers' Euler schedulers have it).
Tensor level_of_table(const Tensor& exact, const Tensor& ratios, const Tensor& t, bool alpha) {
  const TableAt where = table_at(t, exact.size(0));
  const Tensor whole = exact.to(t.device()).take(where.low);
  if (!t.is_floating_point()) return whole;
  const Tensor ratio = between(ratios, where), scale = (ratio.square() + 1.0).rsqrt();
  return at::where(where.weight.eq(0.0), whole, alpha ? scale : ratio * scale);
}

}  // namespace

Tensor Schedule::alpha(const Tensor& t) const {
  if (config_.kind == ScheduleKind::flow) return 1.0 - share_of_axis(t, config_);
  if (config_.kind == ScheduleKind::edm)
    return (edm_ratio(t, config_).square() + config_.sigma_data * config_.sigma_data).rsqrt();
  return level_of_table(alpha_table_, ratio_table_, t, true);
}

Tensor Schedule::sigma(const Tensor& t) const {
  if (config_.kind == ScheduleKind::flow) return share_of_axis(t, config_);
  if (config_.kind == ScheduleKind::edm) return edm_ratio(t, config_) * alpha(t);
  return level_of_table(sigma_table_, ratio_table_, t, false);
}

Tensor Schedule::snr(const Tensor& t) const { return (alpha(t) / sigma(t)).square(); }

double Schedule::ratio_of(double t) const {
  const double T = static_cast<double>(config_.num_train_timesteps), share = std::clamp(t / T, 0.0, 1.0);
  if (config_.kind == ScheduleKind::flow) return share < 1.0 ? share / (1.0 - share) : kInfinite;
  if (config_.kind == ScheduleKind::edm) return config_.sigma_min * std::pow(config_.sigma_max / config_.sigma_min, share);
  const double position = std::clamp(t, 0.0, max_timestep()), low = std::floor(position), weight = position - low;
  const size_t i = static_cast<size_t>(low), j = std::min(i + 1, ratios_.size() - 1);
  return weight == 0.0 ? ratios_[i] : ratios_[i] * (1.0 - weight) + ratios_[j] * weight;
}

double Schedule::noise_ratio(double t) const { return ratio_of(t); }

double Schedule::alpha(double t) const {
  if (config_.kind == ScheduleKind::flow) return 1.0 - std::clamp(t / static_cast<double>(config_.num_train_timesteps), 0.0, 1.0);
  const double ratio = ratio_of(t), data = discrete() ? 1.0 : config_.sigma_data;
  const double position = std::clamp(t, 0.0, max_timestep());
  if (discrete() && position == std::floor(position)) return alpha_table_.data_ptr<double>()[static_cast<int64_t>(position)];
  return 1.0 / std::sqrt(ratio * ratio + data * data);
}

double Schedule::sigma(double t) const {
  if (config_.kind == ScheduleKind::flow) return std::clamp(t / static_cast<double>(config_.num_train_timesteps), 0.0, 1.0);
  const double position = std::clamp(t, 0.0, max_timestep());
  if (discrete() && position == std::floor(position)) return sigma_table_.data_ptr<double>()[static_cast<int64_t>(position)];
  return ratio_of(t) * alpha(t);
}

double Schedule::timestep_of_ratio(double ratio) const {
  const double T = static_cast<double>(config_.num_train_timesteps);
  if (config_.kind == ScheduleKind::flow) return std::isinf(ratio) ? T : T * std::clamp(ratio / (1.0 + ratio), 0.0, 1.0);
  if (config_.kind == ScheduleKind::edm) {
    if (!(ratio > 0.0)) return 0.0;
    return T * std::clamp(std::log(ratio / config_.sigma_min) / std::log(config_.sigma_max / config_.sigma_min), 0.0, 1.0);
  }
  if (ratio <= ratios_.front()) return 0.0;
  if (ratio >= ratios_.back()) return max_timestep();
  const auto above = std::upper_bound(ratios_.begin(), ratios_.end(), ratio);
  const size_t i = static_cast<size_t>(above - ratios_.begin()) - 1;
  return static_cast<double>(i) + (ratio - ratios_[i]) / (ratios_[i + 1] - ratios_[i]);
}

double Schedule::shift_of_mu(double mu) const { return config_.shift_kind == ShiftKind::exponential ? std::exp(mu) : mu; }

double Schedule::shift_for(int64_t tokens) const {
  if (!config_.dynamic_shift) return config_.shift;
  if (tokens <= 0)
    fail<ConfigError>("schedule flow: dynamic_shift needs the number of image tokens (sampling.tokens, now {}), for example "
                      "(height / 16) * (width / 16)", tokens);
  const double slope = (config_.max_shift - config_.base_shift) / static_cast<double>(config_.max_length - config_.base_length);
  return shift_of_mu(config_.base_shift + slope * static_cast<double>(tokens - config_.base_length));
}

Tensor add_noise(const Schedule& schedule, const Tensor& x0, const Tensor& noise, const Tensor& t) {
  FEW_CHECK(x0.sizes() == noise.sizes() && t.dim() == 1 && t.size(0) == x0.size(0), "add_noise: x0 has {} values, noise {}, and t {}",
            x0.numel(), noise.numel(), t.numel());
  const auto level = [&](const Tensor& l) { return append_dims(l.to(x0.device(), x0.scalar_type()), x0.dim()); };
  return level(schedule.alpha(t)) * x0 + level(schedule.sigma(t)) * noise;
}

}  // namespace fewstep::diffusion
