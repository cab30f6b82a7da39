// A tiny teacher in a scratch folder, and trainers that distil it in the test's own process.
#pragma once
#include <filesystem>
#include <memory>
#include <string>

#include "tests/support/scratch.h"
#include "tests/trainers/diffusion_bench.h"
#include "trainers/distillation.h"

namespace fewstep::testing {

struct TeacherKind {
  std::string prediction = "flow_prediction";
  int64_t channels = 8;
  uint64_t noise = 1;  // of its weights
};

// A network of some 20,000 parameters on 4 x 8 x 8 latents of ScoredPictures; every weight random, also those that start at 0, so
// that all paths count.
void make_teacher(const std::filesystem::path& folder, const TeacherKind& kind = {});

// Data, world and context of a trainer.
struct DistillationGround {
  ScoredPictures data;
  std::unique_ptr<dist::World> world = dist::World::single();
  TrainContext context(int64_t accumulate = 1) const {
    return {.world = *world, .seed = 3, .total_steps = 100, .horizon = 100, .batch_size = 8, .accumulate = accumulate, .train = data,
            .validation = &data};
  }
  Batch batch(int64_t step) const { return load_range(data, 8 * (step % 6), 8 * (step % 6) + 8, 0); }
};

double largest_difference(const TensorMap& a, const TensorMap& b);

}  // namespace fewstep::testing
