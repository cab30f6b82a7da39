// Noise on embeddings against closed forms.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "src/models/embedding_noise.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"

namespace fewstep {
namespace {

using models::EmbeddingNoise;
using models::EmbeddingNoiseConfig;
using models::LevelSpacing;
using models::NoiseSchedule;
using models::Normalise;
using models::StatsRows;

// Dimensions of unlike means and deviations; the first five rows are text's.
Tensor some_table(int64_t V = 45, int64_t d = 6) {
  const Tensor z = normal_by_id(at::arange(V), {d}, 3, Stream::init, 0).to(at::kDouble);
  Tensor table = z * at::logspace(-2, 1, d, 10, at::kDouble) + at::linspace(-3, 3, d, at::kDouble);
  table.narrow(0, 0, 5).mul_(2).add_(1);
  return table;
}
double gap(const Tensor& a, const Tensor& b) { return (a - b).abs().max().item<double>(); }
Tensor at_time(double t, int64_t n) { return at::full({n}, t, at::kDouble); }

TEST(EmbeddingNoise, NormalisedTableHasMomentsZeroAndOne) {
  const Tensor table = some_table(), image = table.narrow(0, 5, 40);
  for (const StatsRows stats : {StatsRows::all, StatsRows::image}) {
    const Tensor rows = stats == StatsRows::all ? table : image;
    const Tensor z = EmbeddingNoise({.stats_rows = stats}, table, 5).normalise(rows);
    EXPECT_LT(z.mean(0).abs().max().item<double>(), 1e-12);
    EXPECT_LT(gap(z.std(0, false), at::ones({6}, at::kDouble)), 1e-12);
  }
  const EmbeddingNoise scalar({.normalise = Normalise::scalar}, table, 5), none({.normalise = Normalise::none}, table, 5);
  const Tensor z = scalar.normalise(table);
  EXPECT_NEAR(z.mean().item<double>(), 0, 1e-12);
  EXPECT_NEAR(z.std(false).item<double>(), 1, 1e-12);
  EXPECT_LT(gap(z, (table - table.mean()) / table.std(false)), 1e-12);
  EXPECT_TRUE(none.normalise(table).equal(table));
  EXPECT_LT(gap(scalar.denormalise(z), table), 1e-12);
}

TEST(EmbeddingNoise, NoiseIsThePathOfItsSchedule) {
  const EmbeddingNoise flow({}, some_table(), 5), vp({.schedule = NoiseSchedule::vp}, some_table(), 5);
  const Tensor z0 = normal_by_id(at::arange(4), {6}, 1, Stream::noise, 0).to(at::kDouble);
  const Tensor eps = normal_by_id(at::arange(4), {6}, 2, Stream::noise, 0).to(at::kDouble);
  for (const EmbeddingNoise* noise : {&flow, &vp}) EXPECT_TRUE(noise->add_noise(z0, at_time(0, 4), eps).equal(z0)) << "to the bit";
  EXPECT_LT(gap(flow.add_noise(z0, at_time(1, 4), eps), eps), 1e-15);
  EXPECT_LT(gap(flow.add_noise(z0, at_time(0.3, 4), eps), 0.7 * z0 + 0.3 * eps), 1e-15);
  EXPECT_LT(gap(vp.add_noise(z0, at_time(0.5, 4), eps), (z0 + eps) * std::sqrt(0.5)), 1e-15);
}

TEST(EmbeddingNoise, DenoisingWithAFixedEstimateLandsOnIt) {
  const Tensor z0 = normal_by_id(at::arange(3), {6}, 1, Stream::noise, 0).to(at::kDouble);
  const Tensor eps = normal_by_id(at::arange(3), {6}, 2, Stream::noise, 0).to(at::kDouble);
  for (const NoiseSchedule schedule : {NoiseSchedule::flow_matching, NoiseSchedule::vp}) {
    const EmbeddingNoise noise({.schedule = schedule}, some_table(), 5);
    const auto t = models::level_times(noise.config(), 6);
    Tensor z = noise.add_noise(z0, at_time(t[6], 3), eps);
    for (size_t k = 6; k > 0; --k) {
      z = noise.denoise(z, z0, at_time(t[k], 3), at_time(t[k - 1], 3));
      EXPECT_LT(gap(z, noise.add_noise(z0, at_time(t[k - 1], 3), eps)), 1e-12) << "along the same noise, level " << k - 1;
    }
    EXPECT_LT(gap(z, z0), 1e-15);
    EXPECT_GT(gap(noise.denoise(eps, z0, at_time(1, 3), at_time(0.5, 3)), z0), 0.1) << "half way is not there";
  }
}

TEST(EmbeddingNoise, LevelsRiseFromCleanToPureNoise) {
  for (const LevelSpacing spacing : {LevelSpacing::karras, LevelSpacing::uniform}) {
    const EmbeddingNoiseConfig c{.levels = spacing};
    const auto t = models::level_times(c, 5);
    ASSERT_EQ(t.size(), 6u);
    EXPECT_EQ(t[0], 0);
    EXPECT_NEAR(t[1], c.t_min, 1e-15);
    EXPECT_EQ(t[5], c.t_max);
    for (size_t k = 1; k < t.size(); ++k) EXPECT_GT(t[k], t[k - 1]);
    EXPECT_EQ(models::level_times(c, 1), (std::vector<double>{0, 1}));
  }
  // Karras et al. 2022, eq. 5, by hand: the middle of three levels.
  EXPECT_NEAR(models::level_times({}, 3)[2], std::pow(0.5 * (std::pow(1e-3, 1.0 / 7) + 1), 7), 1e-15);
}

TEST(EmbeddingNoise, TimestepTokensHaveTheTablesMoments) {
  const EmbeddingNoise noise({}, some_table(45, 64), 5);
  const Tensor t = at::tensor({0.0, 0.1, 0.5}, at::kDouble), z = noise.normalise(noise.timestep_embedding(t));
  const Tensor squares = z.narrow(1, 0, 32).square() + z.narrow(1, 32, 32).square();
  EXPECT_LT(gap(squares, at::ones({3, 32}, at::kDouble)), 1e-9) << "cosines and sines of the same angles";
  EXPECT_NEAR(z[1][0].item<double>(), std::cos(100.0), 1e-9);
  EXPECT_GT(gap(z[1], z[2]), 0.5);
}

TEST(EmbeddingNoise, IsTheSameAfterItsFolder) {
  namespace fs = std::filesystem;
  const fs::path folder = fs::temp_directory_path() / ("fewstep-noise-" + std::to_string(getpid()));
  const EmbeddingNoise noise({.normalise = Normalise::scalar, .schedule = NoiseSchedule::vp, .t_min = 0.01}, some_table(), 5);
  EXPECT_FALSE(EmbeddingNoise::load(folder).has_value());
  noise.save(folder);
  const auto back = EmbeddingNoise::load(folder);
  fs::remove_all(folder);
  ASSERT_TRUE(back.has_value());
  EXPECT_EQ(back->config(), noise.config());
  EXPECT_TRUE(back->mean().equal(noise.mean()) && back->deviation().equal(noise.deviation()));
}

}  // namespace
}  // namespace fewstep
