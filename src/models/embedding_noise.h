// Noise on token embeddings in normalised space (SJD2, arXiv 2510.08994): what next-clean-token fine-tuning and the SJD2
// decoder must agree on, and their shared arithmetic. A model folder keeps it as the component `next_clean_token/`.
//   z_0 = (E[x] - mean) / deviation,   z_t = alpha_t z_0 + sigma_t eps,   input = deviation z_t + mean
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string_view>
#include <vector>

#include "src/base/json.h"
#include "src/config/visitor.h"
#include "src/tensor/tensor.h"

namespace fewstep::models {

enum class Normalise { per_dimension, scalar, none };
enum class StatsRows { all, image };
enum class NoiseSchedule { flow_matching, vp };
enum class LevelSpacing { karras, uniform };
enum class TimestepTokens { none, shared_suffix, per_slot };

struct EmbeddingNoiseConfig {
  Normalise normalise = Normalise::per_dimension;  // none: mean 0, deviation 1
  StatsRows stats_rows = StatsRows::all;           // rows of the embedding matrix the statistics are taken over
  NoiseSchedule schedule = NoiseSchedule::flow_matching;  // alpha = 1 - t, sigma = t; vp: cos(pi t / 2), sin(pi t / 2)
  LevelSpacing levels = LevelSpacing::karras;
  double t_min = 1e-3, t_max = 1.0, rho = 7.0;     // rho: of the Karras spacing (arXiv 2206.00364, eq. 5)
  TimestepTokens timestep_tokens = TimestepTokens::shared_suffix;

  static EmbeddingNoiseConfig from_json(const Json& json, std::string_view where);
  Json to_json() const;
  bool operator==(const EmbeddingNoiseConfig&) const = default;
};
void describe(config::Visitor& v, EmbeddingNoiseConfig& c);
std::string_view name_of(TimestepTokens t);

// Time at u in [0, 1]: t_min at 0, t_max at 1, by the spacing of the levels.
double time_at(const EmbeddingNoiseConfig& c, double u);
// t_0 = 0 (clean), t_1 ... t_K = t_max: K = `steps` levels; one step goes from pure noise to clean.
std::vector<double> level_times(const EmbeddingNoiseConfig& c, int64_t steps);
double alpha_at(NoiseSchedule schedule, double t);
double sigma_at(NoiseSchedule schedule, double t);

// Fixed statistics of the embedding matrix, without gradient.
class EmbeddingNoise {
 public:
  // table [V, d]; rows from first_image_row on are the image codes' (stats_rows: image). A deviation below 1e-8 counts as 1e-8.
  EmbeddingNoise(const EmbeddingNoiseConfig& config, const Tensor& table, int64_t first_image_row);
  // The component folder: config.json and model.safetensors with `mean` and `deviation` [d].
  static std::optional<EmbeddingNoise> load(const std::filesystem::path& folder);  // nullopt: no such folder
  void save(const std::filesystem::path& folder) const;

  const EmbeddingNoiseConfig& config() const { return config_; }
  const Tensor& mean() const { return mean_; }
  const Tensor& deviation() const { return deviation_; }
  void to(const at::TensorOptions& options);

  Tensor normalise(const Tensor& embeddings) const;  // [..., d] -> z_0
  Tensor denormalise(const Tensor& z) const;         // [..., d] -> embeddings
  // z_t of z_0 [..., d] at times t [...] with eps [..., d]; t = 0 gives z_0 exactly.
  Tensor add_noise(const Tensor& z0, const Tensor& t, const Tensor& eps) const;
  // Deterministic DDIM from t to t_next with the clean estimate z0 (SJD2's update, safe at alpha_t = 0):
  //   z' = (sigma' / sigma) z + (alpha' - alpha sigma' / sigma) z0.   t_next = 0 lands on z0.
  Tensor denoise(const Tensor& z, const Tensor& z0, const Tensor& t, const Tensor& t_next) const;
  // The timestep token: sinusoids of 1000 t over d dimensions (cosines, then sines) in normalised space, then denormalised:
  // t [...] -> [..., d].
  Tensor timestep_embedding(const Tensor& t) const;

 private:
  EmbeddingNoise(const EmbeddingNoiseConfig& config, Tensor mean, Tensor deviation);
  EmbeddingNoiseConfig config_;
  Tensor mean_, deviation_;
};

}  // namespace fewstep::models
