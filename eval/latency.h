// Wall-clock of whole pipeline calls: one setting, or several in turns so that a busy machine slows all of them alike.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "eval/eval_config.h"
#include "eval/results.h"

namespace fewstep::eval {

struct Timing {
  Latency latency;
  std::vector<double> seconds;  // of every timed call
};
// One Timing for each of `settings`: call r of every setting has the same prompts and seeds, and they take turns.
std::vector<Timing> measure_in_turns(pipelines::Pipeline& pipeline, const std::vector<std::string>& prompts,
                                     const LatencyConfig& config, uint64_t seed,
                                     std::span<const pipelines::GenerateOptions> settings);

// Times `options` and, for a decoder with a window, plain autoregressive decoding in turns with it: fills latency,
// latency_ar and the metric speed_up[ar].
void measure_latency(pipelines::Pipeline& pipeline, const std::vector<std::string>& prompts,
                     const pipelines::GenerateOptions& options, const LatencyConfig& config, uint64_t seed,
                     ResultRow& row);

// How many times as fast `own` is: geometric mean of the ratios turn by turn, interval by Student's t on their
// logarithms.
Value speed_up(const std::vector<double>& baseline, const std::vector<double>& own);

// p in [0, 1], nearest rank on the sorted values.
double percentile(std::vector<double> values, double p);

// The plain autoregressive decoder with the law of `options`.
pipelines::GenerateOptions autoregressive(pipelines::GenerateOptions options);

}  // namespace fewstep::eval
