#include "eval/latency.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>

#include "eval/frechet.h"
#include "src/base/error.h"
#include "src/base/log.h"
#include "src/base/memory.h"
#include "src/base/progress.h"
#include "src/base/signals.h"
#include "src/pipelines/autoregressive_pipeline.h"

namespace fewstep::eval {

double percentile(std::vector<double> values, double p) {
  FEW_CHECK(!values.empty(), "percentile of nothing");
  std::sort(values.begin(), values.end());
  const auto rank = static_cast<int64_t>(std::ceil(p * static_cast<double>(values.size())));
  return values[static_cast<size_t>(std::clamp<int64_t>(rank - 1, 0, static_cast<int64_t>(values.size()) - 1))];
}

pipelines::GenerateOptions autoregressive(pipelines::GenerateOptions options) {
  options.decoder = {};
  return options;
}

std::vector<Timing> measure_in_turns(std::span<const TimedSetting> settings, const std::vector<std::string>& prompts,
                                     const LatencyConfig& l, uint64_t seed) {
  std::vector<Timing> timings(settings.size());
  double load = 0;
  getloadavg(&load, 1);
  load /= static_cast<double>(sysconf(_SC_NPROCESSORS_ONLN));
  std::vector<std::vector<double>> inner(settings.size());
  Progress progress("latency", l.warmup + l.runs);
  for (int64_t run = 0; run < l.warmup + l.runs; ++run) {
    if (signals::stop_requested()) throw Interrupted("evaluation stopped while timing; nothing was written");
    std::vector<std::string> batch;
    for (int64_t i = 0; i < l.batch_size; ++i)
      batch.push_back(prompts[static_cast<size_t>(run * l.batch_size + i) % prompts.size()]);
    for (size_t s = 0; s < settings.size(); ++s) {
      pipelines::GenerateOptions options = settings[s].options;
      options.batch_size = l.batch_size;
      const auto start = std::chrono::steady_clock::now();
      const auto made = settings[s].pipeline->generate(batch, seed, run * l.batch_size, options);
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      if (run == 0) timings[s].latency.first = seconds;
      if (run < l.warmup) continue;
      timings[s].seconds.push_back(seconds);
      double tokens = 0;
      for (const decoding::Decoded& d : made.decoded) tokens += d.seconds;
      inner[s].push_back(tokens);
    }
    progress.update(run + 1);
  }
  progress.finish();
  for (size_t s = 0; s < settings.size(); ++s)
    timings[s].latency = {.p50 = percentile(timings[s].seconds, 0.5),
                          .p95 = percentile(timings[s].seconds, 0.95),
                          .batch = l.batch_size,
                          .runs = l.runs,
                          .warmup = l.warmup,
                          .inner_p50 = percentile(inner[s], 0.5),
                          .p90 = percentile(timings[s].seconds, 0.9),
                          .p99 = percentile(timings[s].seconds, 0.99),
                          .first = timings[s].latency.first,
                          .load = load,
                          .peak_memory = peak_memory()};
  return timings;
}

Value median_ms(std::vector<double> seconds) {
  FEW_CHECK(!seconds.empty(), "median of nothing");
  std::sort(seconds.begin(), seconds.end());
  const auto n = static_cast<int64_t>(seconds.size());
  const double reach = 0.98 * std::sqrt(static_cast<double>(n));
  const auto at = [&](double rank) { return 1e3 * seconds[static_cast<size_t>(std::clamp<int64_t>(std::llround(rank), 0, n - 1))]; };
  const double middle = 0.5 * static_cast<double>(n - 1);
  return {.value = 1e3 * percentile(seconds, 0.5), .ci95 = n > 1 ? 0.5 * (at(middle + reach) - at(middle - reach)) : 0, .n = n};
}

void measure_latency(const TimedSetting& own, const std::vector<std::string>& prompts, const LatencyConfig& config, uint64_t seed,
                     ResultRow& row, const TimedSetting* teacher) {
  std::vector<TimedSetting> settings = {own};
  const bool tokens = dynamic_cast<const pipelines::AutoregressivePipeline*>(own.pipeline) != nullptr;
  const bool window = tokens && own.options.decoder.kind != decoding::DecoderKind::ar;
  if (window) settings.push_back({own.pipeline, autoregressive(own.options)});
  if (teacher) settings.push_back(*teacher);
  LatencyConfig first = config;
  if (!config.batch_sizes.empty()) first.batch_size = config.batch_sizes[0];
  const std::vector<Timing> timings = measure_in_turns(settings, prompts, first, seed);
  row.latency = timings[0].latency;
  if (row.latency.load > 0.5)
    log::warn("latency: other work kept {:.0f} % of the cores busy; times are not to be trusted", 100 * row.latency.load);
  if (window) row.latency_ar = timings[1].latency, row.metrics["speed_up[ar]"] = speed_up(timings[1].seconds, timings[0].seconds);
  if (teacher) row.metrics["speed_up[teacher]"] = speed_up(timings.back().seconds, timings[0].seconds);
  for (const int64_t size : config.batch_sizes) {
    LatencyConfig other = config;
    other.batch_size = size;
    const std::vector<double> seconds =
        size == first.batch_size ? timings[0].seconds : measure_in_turns({&own, 1}, prompts, other, seed)[0].seconds;
    row.metrics[fmt::format("latency_ms[batch={}]", size)] = median_ms(seconds);
  }
}

Value speed_up(const std::vector<double>& baseline, const std::vector<double>& own) {
  FEW_CHECK(baseline.size() == own.size() && !own.empty(), "speed-up of {} calls over {}", own.size(), baseline.size());
  const double n = static_cast<double>(own.size());
  double mean = 0, squares = 0;
  for (size_t i = 0; i < own.size(); ++i) mean += std::log(baseline[i] / own[i]) / n;
  for (size_t i = 0; i < own.size(); ++i) {
    const double d = std::log(baseline[i] / own[i]) - mean;
    squares += d * d;
  }
  Value value{.value = std::exp(mean), .n = static_cast<int64_t>(own.size())};
  if (own.size() > 1) value.ci95 = value.value * student_t95(value.n - 1) * std::sqrt(squares / (n - 1) / n);
  return value;
}

}  // namespace fewstep::eval
