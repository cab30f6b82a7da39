// A DMD2 training of seconds in the test's own process, and a teacher to distil.
#pragma once
#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "tests/support/scratch.h"
#include "tests/trainers/diffusion_bench.h"
#include "trainers/dmd2.h"

namespace fewstep::testing {

inline constexpr const char* kFlowTeacher = "schedule: {kind: flow}\nprediction: flow_prediction\n";

// The model folder of a class-conditional teacher that has learned for a moment: its scores are no zeros. Made once a program.
const std::filesystem::path& flow_teacher();
const std::filesystem::path& epsilon_teacher();
const std::filesystem::path& sample_teacher();  // predicts x0

struct Dmd2ConfigRoot {
  Dmd2Config config;
};
inline void describe(config::Visitor& v, Dmd2ConfigRoot& r) { r.config.describe(v); }

// Two rungs, float64, guidance 2, no monitors of diversity, unless `more` says otherwise.
std::string dmd2_yaml(const std::filesystem::path& teacher, const std::string& more = {});

using TrainerState = std::map<std::string, TensorMap>;

struct Dmd2Bench {
  ScoredPictures data;
  std::unique_ptr<dist::World> world = dist::World::single();
  Dmd2ConfigRoot root;
  std::unique_ptr<Trainer> trainer;
  explicit Dmd2Bench(const std::string& yaml, int64_t accumulate = 1);
  TrainContext context(int64_t accumulate = 1) const {
    return {.world = *world, .seed = 3, .total_steps = 100, .horizon = 100, .batch_size = 8, .accumulate = accumulate, .train = data, .validation = &data};
  }
  Batch batch(int64_t step) const { return load_range(data, 8 * (step % 6), 8 * (step % 6) + 8, 0); }
  std::map<std::string, double> step(int64_t step);
  TrainerState state() const;  // a copy
};

// Names whose tensors differ, "file: name" each.
std::vector<std::string> differing_tensors(const TrainerState& a, const TrainerState& b);
// Largest relative difference |a - b| / |a| over the weights whose names begin with `prefix`.
double weight_distance(const TrainerState& a, const TrainerState& b, const std::string& prefix);

}  // namespace fewstep::testing
