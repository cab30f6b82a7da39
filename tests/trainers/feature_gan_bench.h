// A feature discriminator of seconds beside a small teacher, in the test's own process.
#pragma once
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "tests/support/scratch.h"
#include "tests/trainers/diffusion_bench.h"
#include "trainers/diffusion_grid.h"
#include "trainers/feature_gan.h"
#include "trainers/teacher_images.h"

namespace fewstep::testing {

inline const std::string kGanText = "{kind: text, vocab_size: 270, length: 8, dim: 16, layers: 1, heads: 2, micro: {size: false, crop: false, target: false}}";

// Run folders' models of the trainers classifier_encoder and dino, with random weights. The component's own folder is what a DINOv2
// checkpoint looks like.
void write_conv_features(const std::filesystem::path& folder);
void write_vit_features(const std::filesystem::path& folder);
// Whole pictures of one brightness, 8 per unit of the row: one is recognised by its level. Row r is made for sample ids[r].
void write_teacher_file(const std::filesystem::path& path, const std::vector<int64_t>& ids, int64_t side = 16,
                        const std::string& fingerprint = "scored");

struct GanSetting {
  std::string conditioner = kClass;
  int64_t batch_size = 8, accumulate = 1;
  Precision precision = Precision::float64;
  uint64_t seed = 3;
};

// The teacher, its schedule, and the discriminator on them.
struct GanBench {
  std::unique_ptr<Dataset> data = std::make_unique<ScoredPictures>();
  std::unique_ptr<dist::World> own = dist::World::single();
  dist::World& world;
  GanSetting setting;
  DiffusionConfigRoot root;
  TrainContext context;
  pipelines::DiffusionModel model;
  diffusion::StudentSchedule schedule;
  std::unique_ptr<FeatureGan> gan;

  explicit GanBench(const FeatureGanConfig& config, const GanSetting& s = {}, dist::World* given = nullptr, const std::filesystem::path& teacher = {});

  // This rank's share of global batch `step`, as the loader shares it out; row i of one rank is sample (8 step + i) mod 48.
  Batch batch(int64_t step) const;
  models::UNetConditions conditions(const Batch& b) const;
  // What a student might have made: another function of the sample at every step.
  Tensor fakes(const Batch& b, int64_t step) const;
};

}  // namespace fewstep::testing
