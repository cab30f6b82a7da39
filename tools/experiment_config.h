// experiments/<name>/run.yaml: rows of a paper table, each a chain of jobs. Its root key `rows:` tells it from other
// files.
//
//   rows:
//     - label: without warm start
//       jobs:
//         - {name: tokenizer, command: train, target: configs/vq.yaml, folder: runs/vq}
//         - {name: model, command: train, target: configs/ar.yaml, set: {trainer.tokenizer: "${run:tokenizer}"}}
//         - {name: eval, command: eval, target: configs/eval.yaml, set: {model: "${run:model}"}}
//   matrix: {model.trainer.optimizer.lr: [1e-3, 1e-4]}    # job name, then the key of that job's config
//   seeds: [1, 2, 3]
//
// A row may have a matrix and seeds of its own in place of these.
//
// Rows may begin with the same jobs in the same folders (a training that several rows go on from): those are run once. A job whose
// `set` holds a `seed` keeps it where `seeds` are given.
//
// ${run:JOB} is that job's folder in the same row and seed (or a shared job's), ${row} the row's folder, ${out} the
// experiment's, ${label}, ${seed}. They may stand in target, folder, set and args.
#pragma once
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "src/config/visitor.h"

namespace fewstep::experiment {

enum class Scale { tiny, full };

struct JobConfig {
  std::string name;
  std::string command = "train";  // train, eval, sample, or any other subcommand ("config check")
  std::string target;             // config file, or model folder
  std::string folder;             // empty: ${row}/<name>
  config::Overrides set;          // key=value after the target
  std::vector<std::string> args;  // further arguments as they are
};
// What a full-scale row needs, computed without weights.
struct NeedsConfig {
  std::string model_config;  // config.json of the trained network: parameters are counted on the meta device
  int64_t tokens_per_sample = 0, batch_size = 0, gpus = 1;
  double bytes_per_parameter = 16;   // fp32 weights, gradients and two moments
  int64_t steps = 0;                 // of the training; with `gpu`: the least GPU hours it can take
  std::string gpu = {};              // a name of gpu_peaks(); empty: not said
  std::vector<std::string> files;    // paths that must exist
  std::vector<std::string> missing;  // what fewstep itself cannot do yet, in words
};
struct RowConfig {
  std::string label;
  Scale scale = Scale::tiny;
  std::vector<JobConfig> jobs;
  std::vector<int64_t> seeds;  // empty: the experiment's
  config::Overrides matrix;    // empty: the experiment's
  std::string results_of;      // a shared eval job whose results are this row's; empty: the row's own last eval job
  std::string measured;           // instead of the experiment's
  std::vector<std::string> also;  // further rows of the eval job's results (variants): "<label>; <their label>"
  bool each_eval = false;      // every eval job of the row is a row of the table: "<label>; <job>"
  NeedsConfig needs;
};
struct ExperimentConfig {
  std::string name, question;
  std::string out;                // empty: runs/experiments/<name>
  std::vector<JobConfig> shared;  // run once, before all rows
  std::vector<RowConfig> rows;
  config::Overrides matrix;
  std::vector<int64_t> seeds;        // empty: one run a row, with the seeds of its configs
  std::string measured = "samples";  // label of the row in the eval jobs' results.json
  std::vector<std::string> columns;  // metric names or their beginnings, in this order; empty: all
  std::string curve_x, curve_y;      // metrics: a line through the points of each row's matrix, curve.svg; empty: none
  std::vector<std::string> curve_also;  // further panels along other x
  bool curve_points = false;            // a named point a row instead of lines; logarithmic axes
  std::string report;                // job whose report.html is copied to <out>/report.html
};
void describe(config::Visitor& v, JobConfig& c);
void describe(config::Visitor& v, NeedsConfig& c);
void describe(config::Visitor& v, RowConfig& c);
void describe(config::Visitor& v, ExperimentConfig& c);

// paper.yaml: the numbers of the publication, printed beside ours.
struct PaperRow {
  std::string label;
  config::Overrides metrics;  // column -> text
};
struct PaperConfig {
  std::string source;
  std::vector<PaperRow> rows;
};
void describe(config::Visitor& v, PaperRow& c);
void describe(config::Visitor& v, PaperConfig& c);

// A row after matrix and substitution.
struct PlannedJob {
  std::string name, command, target;
  std::filesystem::path folder;
  std::vector<std::string> overrides, args;
};
struct PlannedRun {
  int64_t seed = 0;
  bool seeded = false;  // `seeds` was given: jobs get seed=...
  std::filesystem::path folder;
  std::vector<PlannedJob> jobs;
};
struct PlannedRow {
  std::string label;  // with the matrix values
  Scale scale = Scale::tiny;
  std::vector<std::pair<std::string, std::string>> point;  // matrix key -> value
  std::vector<PlannedRun> runs;                            // one a seed
  std::filesystem::path results;                           // folder of the shared job `results_of`
  std::string measured;                                    // label in its results
  std::string measured_job;                                // the eval job whose numbers these are; "": the last one
  NeedsConfig needs;
};
struct Plan {
  std::filesystem::path out;
  PlannedRun shared;
  std::vector<PlannedRow> rows;
};
// ConfigError: unknown substitution, duplicate labels or job names, a matrix key that names no job, no such row.
Plan make_plan(const ExperimentConfig& config);

// Dense bfloat16 peaks of accelerators, in FLOP/s, from their makers' data sheets.
struct GpuPeak {
  std::string_view name;
  double flops;
};
std::span<const GpuPeak> gpu_peaks();

// "[a, b, 'c, d']" -> its items; a scalar is one item.
std::vector<std::string> flow_items(const std::string& yaml);
// A label as a folder name: letters, digits, '.', '-', '_'.
std::string folder_name(const std::string& label);

}  // namespace fewstep::experiment
