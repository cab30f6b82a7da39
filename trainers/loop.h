// The only training loop: data, step, log, validate, sample, checkpoint, evaluate hook, stop.
#pragma once
#include <functional>

#include "trainers/stages.h"
#include "trainers/trainer.h"

namespace fewstep {

struct LoopConfig {
  int64_t steps = 1000;
  int64_t batch_size = 64;         // global: divided by ranks x accumulate
  int64_t accumulate = 1;
  int64_t log_every = 50;          // steps
  int64_t validate_every = 0;      // 0: only at the end
  int64_t validation_samples = 512;
  int64_t sample_every = 0;        // grids; 0: only at the end
  int64_t checkpoint_every = 0;    // 0: only at the end
  int64_t keep_last = 2;
  int64_t workers = 1, prefetch = 4;
};
void describe(config::Visitor& v, LoopConfig& c);

// One complete run, as the YAML file has it.
struct RunConfig {
  std::string name;
  std::string run_dir;             // empty: runs/<name>
  int64_t seed = 0;
  int64_t threads = 0;             // per rank; 0: cores / ranks on this machine
  dist::DeviceKind device = dist::DeviceKind::automatic;
  LoopConfig loop;
  std::unique_ptr<DatasetConfig> data;
  std::unique_ptr<TrainerConfig> trainer;
  std::vector<StageConfig> stages;                 // empty: loop.steps steps with one setting
  ScheduleSpan schedule_over = ScheduleSpan::run;
  std::filesystem::path folder() const;
};
void describe(config::Visitor& v, RunConfig& c);

struct LoopResult {
  int64_t steps = 0;               // of all stages
  double seconds = 0;              // training only
  std::map<std::string, double> last_train, last_validation;
};
// Runs to the end or to a signal (Interrupted, state saved). `resume`: continue from the newest whole checkpoint.
LoopResult run_training(RunConfig& config, dist::World& world, bool resume);

}  // namespace fewstep
