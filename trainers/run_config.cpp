// RunConfig: the YAML file of one training run.
#include <fmt/ranges.h>

#include "datasets/dataset.h"
#include "src/base/error.h"
#include "trainers/loop.h"

namespace fewstep {

void describe(config::Visitor& v, LoopConfig& c) {
  v.field("steps", c.steps, "optimiser steps", config::kAtLeastOne);
  v.field("batch_size", c.batch_size, "global batch: samples per optimiser step over all ranks", config::kAtLeastOne);
  v.field("accumulate", c.accumulate, "micro-steps per optimiser step (memory is that of batch_size / ranks / accumulate)",
          config::kAtLeastOne);
  v.field("log_every", c.log_every, "steps between lines in metrics.jsonl", config::kAtLeastOne);
  v.field("validate_every", c.validate_every, "steps between validations; 0: at the end only", config::kNonNegative);
  v.field("validation_samples", c.validation_samples, "samples of the held-out split used, always the same; 0: none",
          config::kNonNegative);
  v.field("sample_every", c.sample_every, "steps between sample pictures; 0: at the end only", config::kNonNegative);
  v.field("checkpoint_every", c.checkpoint_every, "steps between checkpoints; 0: at the end only", config::kNonNegative);
  v.field("keep_last", c.keep_last, "checkpoints kept; 0: all", config::kNonNegative);
  v.field("workers", c.workers, "loader threads per rank; 0: load in the training thread", config::kNonNegative);
  v.field("prefetch", c.prefetch, "batches loaded ahead", config::kAtLeastOne);
}

void describe(config::Visitor& v, RunConfig& c) {
  static constexpr config::Choice kDevices[] = {{"auto", 0}, {"cpu", 1}, {"cuda", 2}};
  v.require("name");
  v.field("name", c.name, "name of the run");
  v.field("run_dir", c.run_dir, "folder of the run; empty: runs/<name>");
  v.field("seed", c.seed, "seed of every random draw", config::kNonNegative);
  v.field("threads", c.threads, "CPU threads per rank; 0: cores / ranks on this machine", config::kNonNegative);
  v.field("device", c.device, "where tensors live; auto: CUDA when this binary and machine have it", kDevices);
  v.field("loop", c.loop, "length, batch, logging, checkpoints");
  v.require("data");
  v.field("data", c.data, "the data set", dataset_kinds());
  v.require("trainer");
  v.field("trainer", c.trainer, "what is trained and how", trainer_kinds());
  v.field("stages", c.stages, "stretches of the run, one after the other, each with settings of its own; empty: one, of loop.steps");
  static constexpr config::Choice kSpans[] = {{"run", 0}, {"stage", 1}};
  v.field("schedule_over", c.schedule_over, "what learning-rate schedules and their warm-up span, in a run with stages", kSpans);
  if (!c.stages.empty()) {
    // A default cannot be told from a number that was given; a number given is refused unless it says the same.
    const int64_t total = total_steps(c.stages);
    v.check(c.loop.steps == total || c.loop.steps == LoopConfig().steps, "loop",
            fmt::format("steps is {}, but those of the stages sum up to {}: leave it out", c.loop.steps, total));
    c.loop.steps = total;
    std::vector<std::string> refused;
    for (const StageConfig& stage : c.stages)
      for (const auto& [key, value] : stage.set)
        if (c.trainer && key.starts_with("trainer.") && c.trainer->fixed(std::string_view(key).substr(8)))
          refused.push_back(fmt::format("{} (stage '{}')", key, stage.name));
    v.check(refused.empty(), "stages", fmt::format("what makes the network cannot change within a run: {}", fmt::join(refused, ", ")));
  }
  v.check(!c.name.empty() && c.name.find('/') == std::string::npos, "name", "must be a plain, non-empty name");
}

std::filesystem::path RunConfig::folder() const { return run_dir.empty() ? std::filesystem::path("runs") / name : std::filesystem::path(run_dir); }

}  // namespace fewstep
