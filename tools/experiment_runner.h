// Runs the rows of an experiment, each job as a process of its own, and gathers their numbers.
#pragma once
#include <filesystem>
#include <string>
#include <vector>

#include "eval/results.h"
#include "tools/experiment_config.h"

namespace fewstep::experiment {

struct RunOptions {
  std::filesystem::path program;  // the fewstep binary that jobs are started with
  std::string only;               // label of one row; empty: all
  Scale scale = Scale::tiny;      // full: full rows too, where nothing is missing
  bool keep_finished = false;     // finished jobs of the same command line stay, whatever configs say now, until one runs
};

enum class Status { done, failed, waiting, not_runnable };
std::string_view status_name(Status status);

struct RowOutcome {
  std::string label;
  Scale scale = Scale::tiny;
  std::vector<std::pair<std::string, std::string>> point;
  Status status = Status::waiting;
  std::string detail = {};      // failed job and exit code; what a full row needs and what is missing
  eval::ResultRow result = {};  // mean over seeds; interval by Student's t
  double seconds = 0;           // of all its jobs
};
struct Outcome {
  std::vector<RowOutcome> rows;
  std::vector<std::filesystem::path> reports;  // report.html files of eval jobs that were made
  bool all_done() const;                       // of the rows that were chosen and can run
};

// Reads every config the plan needs, full-scale rows included: ConfigError before anything is started.
void check_configs(const Plan& plan);

// Skips finished jobs (same command and configs, exit code 0, folder there), resumes trainings, moves aside what an
// older version of the job left. A failed row does not stop the others. Interrupted: the running job has saved its
// state. ConfigError when `only` names a full row that cannot run: everything it lacks.
Outcome run_experiment(const ExperimentConfig& config, const RunOptions& options);

// Mean over seeds by metric name. Interval: t_{n-1} s / sqrt(n) from two seeds on, else the run's own.
eval::ResultRow mean_over_seeds(const std::string& label, const std::vector<eval::ResultRow>& runs);

// Starts program with arguments, stdout joined to stderr, forwards a stop request, returns its exit code (128 + signal
// when it was killed).
int run_process(const std::filesystem::path& program, const std::vector<std::string>& arguments);
// The job says its own seed: that of the run is not given to it.
bool has_own_seed(const PlannedJob& job);
std::vector<std::string> job_arguments(const PlannedJob& job, const PlannedRun& run);

// "1.2 M parameters; 19 MB a rank before activations; 0.4 TFLOP a step; missing: ..." and whether nothing is missing.
std::pair<std::string, bool> describe_needs(const NeedsConfig& needs);

}  // namespace fewstep::experiment
