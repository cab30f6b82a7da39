// results.json: what eval writes and experiments, reports and papers read.
#pragma once
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "eval/metric.h"
#include "eval/names.h"
#include "eval/qualification.h"
#include "src/base/json.h"

namespace fewstep::eval {

struct Latency {
  double p50 = 0, p95 = 0;  // seconds of one call, text to pixels
  int64_t batch = 0, runs = 0, warmup = 0;
  double inner_p50 = 0;  // of these, drawing tokens; 0: a model without tokens
  double p90 = 0, p99 = 0;
  double first = 0;         // the very first call, before any warm-up
  double load = 0;          // load average of the last minute when the timing began, per core
  int64_t peak_memory = 0;  // bytes of this process, after the timed calls
};

struct ResultRow {
  std::string label;
  std::map<std::string, Value> metrics;  // honest name -> value
  Latency latency = {};                  // runs == 0: not measured
  Latency latency_ar = {};      // of the decoder `ar` with the same model, measured in turns; runs == 0: not measured
  double steps = 0, nfe = 0;    // model calls per image, their mean; 0: no model made these images
  double step_compression = 0;  // mean over images of tokens / steps; 0: not an autoregressive model
  double tflop = 0;             // per image; 0: unknown
  std::vector<int64_t> seeds = {};
  std::string protocol = {};  // protocol_label() of a COCO protocol; empty: none. Rows of two never share a table
};

using Facts = std::vector<std::pair<std::string, std::string>>;  // in order

struct Results {
  std::string name;
  std::string protocol;  // one line: reference, N, prompts, resize
  std::vector<ResultRow> rows;
  Facts provenance;
  std::optional<Qualification> qualification = {};
  std::vector<EncoderIdentity> encoders = {};  // that the numbers come from
};

Json to_json(const Results& results);
// DataError naming `where` and the offending key.
Results results_from_json(const Json& json, std::string_view where);
void save_results(const std::filesystem::path& path, const Results& results);  // checks every metric name first
Results load_results(const std::filesystem::path& path);

// This build, machine and time: version, commit, host, cpu, threads, date. Callers add their own keys.
Facts collect_provenance();

// "12.3 +- 0.4", with as many digits as the interval supports; "-" for a missing value.
std::string format_value(const Value& value);
std::string format_number(double value);
// Metric names of all rows, first seen first.
std::vector<std::string> metric_names(const std::vector<ResultRow>& rows);

}  // namespace fewstep::eval
