// Staged training: one run and one step counter over a list of stages. At a boundary data, loader and trainer are made anew
// with the next stage's settings, and weights, moving average and optimiser go on. A boundary is a checkpoint that is
// resumed with other settings, so going on after a kill is the same thing as going on.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "src/config/visitor.h"
#include "src/tensor/tensor.h"

namespace fewstep {

struct RunConfig;

// What goes on into a stage beside the weights.
struct CarryConfig {
  bool ema = true;        // false: the moving average starts again as a copy of the weights
  bool optimizer = true;  // false: moments start at zero
};
struct StageConfig {
  std::string name;
  int64_t steps = 0;
  config::Overrides set;  // keys of the run's config: data.*, trainer.*, loop.*
  CarryConfig carry;
};
void describe(config::Visitor& v, CarryConfig& c);
void describe(config::Visitor& v, StageConfig& c);
enum class ScheduleSpan { run, stage };  // of learning rates: over the whole run, or anew in each stage

// Steps [first, end) of the run.
struct Stage {
  std::string name;                   // "" for a run without stages
  int64_t first = 0, end = 0;
  int64_t images_before = 0;          // images seen before its first step
  CarryConfig carry;
  std::shared_ptr<RunConfig> config;  // the run's own, with the stage's settings over it
  // The loader's step for step `step` of the run: the stream of samples goes on, also with another batch size.
  int64_t loader_step(int64_t step) const;
};
// One stage, the run itself, for a run without stages. `run` must outlive them.
std::vector<Stage> plan_stages(RunConfig& run);
size_t stage_of(const std::vector<Stage>& stages, int64_t step);  // that `step` belongs to; the last one at the end of the run
int64_t total_steps(const std::vector<StageConfig>& stages);

// The files of a checkpoint (trainer.state(), by stem) as a trainer whose own state is `fresh` takes them over.
std::map<std::string, TensorMap> carry_over(std::map<std::string, TensorMap> files, const std::map<std::string, TensorMap>& fresh,
                                            const CarryConfig& carry);

}  // namespace fewstep
