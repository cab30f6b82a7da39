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
struct TimedSetting {
  pipelines::Pipeline* pipeline = nullptr;
  pipelines::GenerateOptions options = {};
};
// One Timing for each of `settings`: call r of every setting has the same prompts and seeds, and they take turns.
std::vector<Timing> measure_in_turns(std::span<const TimedSetting> settings, const std::vector<std::string>& prompts,
                                     const LatencyConfig& config, uint64_t seed);

// Times `own` and, in turns with it, plain autoregressive decoding for a decoder with a window, and `teacher` where there is one:
// fills latency, latency_ar and the metrics speed_up[ar], speed_up[teacher]. With config.batch_sizes that is the first of them,
// and each is a metric latency_ms[batch=N]: the median, its interval by order statistics.
void measure_latency(const TimedSetting& own, const std::vector<std::string>& prompts, const LatencyConfig& config, uint64_t seed,
                     ResultRow& row, const TimedSetting* teacher = nullptr);

// Median in milliseconds; ranks n / 2 +- 0.98 sqrt(n) bound the interval.
Value median_ms(std::vector<double> seconds);

// How many times as fast `own` is: geometric mean of the ratios turn by turn, interval by Student's t on their
// logarithms.
Value speed_up(const std::vector<double>& baseline, const std::vector<double>& own);

// p in [0, 1], nearest rank on the sorted values.
double percentile(std::vector<double> values, double p);

// The plain autoregressive decoder with the law of `options`.
pipelines::GenerateOptions autoregressive(pipelines::GenerateOptions options);

}  // namespace fewstep::eval
