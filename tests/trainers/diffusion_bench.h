// A diffusion trainer of seconds in the test's own process.
#pragma once
#include <memory>
#include <string>

#include "datasets/loader.h"
#include "src/base/error.h"
#include "src/config/config.h"
#include "src/tensor/modes.h"
#include "trainers/diffusion.h"

namespace fewstep::testing {

// 16 x 16 pictures with a size, a crop and a score of their own.
class ScoredPictures : public Dataset {
 public:
  int64_t size() const override { return 48; }
  Sample get(int64_t index, uint64_t seed, int64_t epoch) const override;
  std::vector<std::string> class_names() const override { return {"red", "green", "blue"}; }
  std::string description() const override { return "scored pictures"; }
  std::string fingerprint() const override { return "scored"; }
};

inline constexpr const char* kUnet = "{block_out_channels: [16, 16], layers_per_block: [1], down_block_types: [DownBlock2D, CrossAttnDownBlock2D], "
                              "up_block_types: [CrossAttnUpBlock2D, UpBlock2D], attention_head_dim: [2], norm_num_groups: 4, "
                              "addition_time_embed_dim: 16}";
inline std::string yaml_with(const std::string& conditioner, const std::string& more) {
  return fmt::format("latents: {{kind: pixel_unshuffle, factor: 2}}\nconditioner: {}\nunet: {}\nsample: {{steps: 3, columns: 3, rows: 2}}\n{}",
                     conditioner, kUnet, more);
}
inline const std::string kClass = "{kind: class, dim: 12, micro: {size: true, crop: true, target: false, aesthetic: true}}";

struct DiffusionConfigRoot {
  DiffusionConfig config;
};
inline void describe(config::Visitor& v, DiffusionConfigRoot& r) { r.config.describe(v); }

// A trainer with all it refers to; ScoredPictures unless other data are given.
struct Bench {
  std::unique_ptr<Dataset> data;
  std::unique_ptr<dist::World> world = dist::World::single();
  DiffusionConfigRoot root;
  std::unique_ptr<Trainer> trainer;
  explicit Bench(const std::string& yaml, std::unique_ptr<Dataset> given = std::make_unique<ScoredPictures>())
      : data(std::move(given)), root(config::parse<DiffusionConfigRoot>(yaml)) {
    trainer = root.config.build({.world = *world, .seed = 3, .total_steps = 100, .horizon = 100, .batch_size = 8, .accumulate = 1,
                                 .train = *data, .validation = data.get()});
  }
  Batch batch(int64_t first, int64_t count = 8) const { return load_range(*data, first, first + count, 0); }
  std::map<std::string, double> step(int64_t step) {
    Metrics m = trainer->step(batch(8 * (step % 6)), {.step = step, .epoch = 0, .seed = 3});
    return m.reduce(*world);
  }
  std::map<std::string, double> validate(int64_t count = 48) {
    const NoGrad no_grad;
    Metrics m = trainer->validate(batch(0, count));
    return m.reduce(*world);
  }
};

}  // namespace fewstep::testing
