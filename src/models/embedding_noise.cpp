#include "src/models/embedding_noise.h"

#include <numbers>

#include "src/base/files.h"
#include "src/io/safetensors.h"
#include "src/models/json_fields.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep::models {
namespace fs = std::filesystem;
namespace {

constexpr config::Choice kNormalise[] = {{"per_dimension", 0}, {"scalar", 1}, {"none", 2}};
constexpr config::Choice kStatsRows[] = {{"all", 0}, {"image", 1}};
constexpr config::Choice kSchedules[] = {{"flow_matching", 0}, {"vp", 1}};
constexpr config::Choice kSpacings[] = {{"karras", 0}, {"uniform", 1}};
constexpr config::Choice kTokens[] = {{"none", 0}, {"shared_suffix", 1}, {"per_slot", 2}};

template <class E>
std::string_view choice_name(std::span<const config::Choice> choices, E value) {
  return choices[static_cast<size_t>(value)].name;
}

template <class E>
void read_choice(const JsonFields& fields, const char* key, std::span<const config::Choice> choices, E& value) {
  std::string text(choice_name(choices, value));
  fields.get(key, text);
  std::vector<std::string> known;
  for (const config::Choice& c : choices) {
    if (c.name == text) {
      value = static_cast<E>(c.value);
      return;
    }
    known.emplace_back(c.name);
  }
  fail<ConfigError>("{}: {}: '{}' is none of {}", fields.where(), key, text, fmt::join(known, ", "));
}

// alpha_t, sigma_t as tensors like t.
std::pair<Tensor, Tensor> path(NoiseSchedule schedule, const Tensor& t) {
  if (schedule == NoiseSchedule::flow_matching) return {1 - t, t};
  const Tensor angle = t * (std::numbers::pi / 2);
  return {angle.cos(), angle.sin()};
}

}  // namespace

void describe(config::Visitor& v, EmbeddingNoiseConfig& c) {
  v.field("normalise", c.normalise, "space the noise is added in; none: the raw embeddings", kNormalise);
  v.field("stats_rows", c.stats_rows, "rows of the embedding matrix that mean and deviation are taken over", kStatsRows);
  v.field("schedule", c.schedule, "flow_matching: alpha = 1 - t, sigma = t; vp: cosine and sine of pi t / 2", kSchedules);
  v.field("levels", c.levels, "spacing of the noise levels", kSpacings);
  v.field("t_min", c.t_min, "time of the lowest noise level", config::Range{1e-6, 1.0});
  v.field("t_max", c.t_max, "time of the highest noise level; 1: pure noise", config::Range{1e-6, 1.0});
  v.field("rho", c.rho, "exponent of the Karras spacing", config::kPositive);
  v.field("timestep_tokens", c.timestep_tokens, "sinusoidal token a noisy slot sees: one per level, one per slot, none", kTokens);
  v.check(c.t_min < c.t_max, "t_min", "must be below t_max");
}

std::string_view name_of(TimestepTokens t) { return choice_name(kTokens, t); }

EmbeddingNoiseConfig EmbeddingNoiseConfig::from_json(const Json& json, std::string_view where) {
  const JsonFields fields(json, where);
  EmbeddingNoiseConfig c;
  read_choice(fields, "normalise", kNormalise, c.normalise);
  read_choice(fields, "stats_rows", kStatsRows, c.stats_rows);
  read_choice(fields, "schedule", kSchedules, c.schedule);
  read_choice(fields, "levels", kSpacings, c.levels);
  read_choice(fields, "timestep_tokens", kTokens, c.timestep_tokens);
  fields.get("t_min", c.t_min);
  fields.get("t_max", c.t_max);
  fields.get("rho", c.rho);
  if (!(c.t_min > 0 && c.t_min < c.t_max && c.t_max <= 1 && c.rho > 0))
    fail<ConfigError>("{}: t_min {}, t_max {}, rho {}: expected 0 < t_min < t_max <= 1 and rho > 0", where, c.t_min, c.t_max, c.rho);
  return c;
}

Json EmbeddingNoiseConfig::to_json() const {
  return Json{{"_class_name", "EmbeddingNoise"},
              {"normalise", choice_name(kNormalise, normalise)},
              {"stats_rows", choice_name(kStatsRows, stats_rows)},
              {"schedule", choice_name(kSchedules, schedule)},
              {"levels", choice_name(kSpacings, levels)},
              {"t_min", t_min},
              {"t_max", t_max},
              {"rho", rho},
              {"timestep_tokens", choice_name(kTokens, timestep_tokens)}};
}

double time_at(const EmbeddingNoiseConfig& c, double u) {
  if (u >= 1) return c.t_max;
  if (c.levels == LevelSpacing::uniform) return c.t_min + u * (c.t_max - c.t_min);
  const double low = std::pow(c.t_min, 1 / c.rho), high = std::pow(c.t_max, 1 / c.rho);
  return std::pow(low + u * (high - low), c.rho);
}

std::vector<double> level_times(const EmbeddingNoiseConfig& c, int64_t steps) {
  std::vector<double> t = {0.0};
  for (int64_t k = 1; k <= steps; ++k)
    t.push_back(steps == 1 ? c.t_max : time_at(c, static_cast<double>(k - 1) / static_cast<double>(steps - 1)));
  return t;
}

double alpha_at(NoiseSchedule schedule, double t) {
  return schedule == NoiseSchedule::flow_matching ? 1 - t : std::cos(std::numbers::pi / 2 * t);
}
double sigma_at(NoiseSchedule schedule, double t) {
  return schedule == NoiseSchedule::flow_matching ? t : std::sin(std::numbers::pi / 2 * t);
}

EmbeddingNoise::EmbeddingNoise(const EmbeddingNoiseConfig& config, Tensor mean, Tensor deviation)
    : config_(config), mean_(std::move(mean)), deviation_(std::move(deviation)) {}

EmbeddingNoise::EmbeddingNoise(const EmbeddingNoiseConfig& config, const Tensor& table, int64_t first_image_row) : config_(config) {
  const NoGrad no_grad;
  const int64_t V = table.size(0);
  const Tensor rows = config.stats_rows == StatsRows::image ? table.narrow(0, first_image_row, V - first_image_row) : table;
  const Tensor wide = rows.detach().to(at::kDouble);
  Tensor mean = wide.mean(0), deviation = wide.std(0, /*unbiased=*/false);
  if (config.normalise == Normalise::scalar)
    mean = wide.mean().expand_as(mean).clone(), deviation = wide.std(/*unbiased=*/false).expand_as(deviation).clone();
  if (config.normalise == Normalise::none) mean.zero_(), deviation.fill_(1);
  mean_ = mean.to(table.options()), deviation_ = deviation.clamp_min(1e-8).to(table.options());
}

std::optional<EmbeddingNoise> EmbeddingNoise::load(const fs::path& folder) {
  if (!fs::exists(folder / "config.json")) return std::nullopt;
  const fs::path weights = folder / "model.safetensors";
  const auto config = EmbeddingNoiseConfig::from_json(read_json(folder / "config.json"), (folder / "config.json").string());
  const TensorMap tensors = io::Safetensors(weights).all();
  for (const char* name : {"mean", "deviation"})
    if (!tensors.contains(name) || tensors.at(name).dim() != 1)
      fail<DataError>("{}: no vector '{}' of the embedding statistics", weights.string(), name);
  return EmbeddingNoise(config, tensors.at("mean").clone(), tensors.at("deviation").clone());
}

void EmbeddingNoise::save(const fs::path& folder) const {
  make_directories(folder);
  write_json(folder / "config.json", config_.to_json());
  io::write_safetensors(folder / "model.safetensors", {{"mean", mean_.to(at::kCPU)}, {"deviation", deviation_.to(at::kCPU)}});
}

void EmbeddingNoise::to(const at::TensorOptions& options) { mean_ = mean_.to(options), deviation_ = deviation_.to(options); }

Tensor EmbeddingNoise::normalise(const Tensor& embeddings) const { return (embeddings - mean_) / deviation_; }
Tensor EmbeddingNoise::denormalise(const Tensor& z) const { return z * deviation_ + mean_; }

Tensor EmbeddingNoise::add_noise(const Tensor& z0, const Tensor& t, const Tensor& eps) const {
  const auto [alpha, sigma] = path(config_.schedule, t.unsqueeze(-1));
  return alpha * z0 + sigma * eps;
}

Tensor EmbeddingNoise::denoise(const Tensor& z, const Tensor& z0, const Tensor& t, const Tensor& t_next) const {
  const auto [a, s] = path(config_.schedule, t.unsqueeze(-1));
  const auto [a1, s1] = path(config_.schedule, t_next.unsqueeze(-1));
  const Tensor ratio = s1 / s;
  return ratio * z + (a1 - a * ratio) * z0;
}

Tensor EmbeddingNoise::timestep_embedding(const Tensor& t) const {
  const int64_t d = mean_.size(0), half = d / 2;
  const Tensor k = at::arange(half, mean_.options());
  const Tensor frequency = (k * (-std::log(10000.0) / static_cast<double>(half))).exp();          // [d / 2]
  const Tensor angle = (t.to(mean_.options()) * 1000.0).unsqueeze(-1) * frequency;                // [..., d / 2]
  Tensor z = at::cat({angle.cos(), angle.sin()}, -1);
  if (d % 2 != 0) z = at::constant_pad_nd(z, {0, 1});
  return denormalise(z);
}

}  // namespace fewstep::models
