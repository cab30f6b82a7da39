#include "tools/experiment_runner.h"

#include <fmt/ranges.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <nlohmann/json.hpp>
#include <thread>

#include "eval/protocol_config.h"
#include "eval/frechet.h"
#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/hash.h"
#include "src/base/json.h"
#include "src/base/log.h"
#include "src/base/signals.h"
#include "src/base/table.h"
#include "src/base/text.h"
#include "src/config/config.h"
#include "src/models/model.h"
#include "src/tensor/ops.h"
#include "trainers/loop.h"

extern char** environ;

namespace fewstep::experiment {
namespace fs = std::filesystem;
namespace {

constexpr int kInterrupted = 130;

// What a job does, as text: equal text, equal result. Trainings and evaluations by their resolved config, so that a
// changed base file counts and a comment does not. `before`: of the job ahead in the chain.
std::string fingerprint(const PlannedJob& job, const PlannedRun& run, const std::string& before) {
  std::string text = before + "\n" + job.command + "\n" + job.target + "\n" + job.folder.string();
  std::vector<std::string> overrides = job.overrides;
  if (run.seeded && !has_own_seed(job) && (job.command == "train" || job.command == "eval"))
    overrides.push_back(fmt::format("seed={}", run.seed));
  if (job.command == "train") {
    auto c = config::load<RunConfig>(job.target, overrides);
    text += config::to_yaml(c);
  } else if (job.command == "eval") {
    const auto resolved = [&](auto c) { text += config::to_yaml(c); };
    if (eval::is_protocol_file(job.target))
      resolved(config::load<eval::ProtocolConfig>(job.target, overrides));
    else
      resolved(config::load<eval::EvalConfig>(job.target, overrides));
  } else {
    for (const std::string& o : overrides) text += o + "\n";
    if (fs::is_regular_file(job.target)) text += read_text(job.target);
    if (run.seeded) text += std::to_string(run.seed);
  }
  for (const std::string& a : job.args) text += a + "\n";
  return sha256_hex(text);
}

// What is known of a job: an entry of jobs.json in the folder above the job's own. So a training that several
// experiments share has one record, and what one of them made is finished for all.
class Record {
 public:
  explicit Record(const PlannedJob& job)
      : path_(job.folder.lexically_normal().parent_path() / "jobs.json"),
        key_(job.folder.lexically_normal().filename()) {
    if (fs::exists(path_)) {
      const Json jobs = read_json(path_);
      if (jobs.is_object() && jobs.contains(key_)) entry_ = jobs[key_];
    }
    if (!entry_.is_object()) entry_ = Json::object();
  }
  bool done(const std::string& print) const { return same(print) && succeeded(); }
  bool succeeded() const { return entry_.value("exit_code", -1) == 0; }
  bool known() const { return !entry_.empty(); }
  bool same(const std::string& print) const { return entry_.value("fingerprint", "") == print; }
  double seconds() const { return entry_.value("seconds", 0.0); }
  // The same arguments ended well; --resume is not one of them.
  bool finished_as(std::vector<std::string> arguments) const {
    std::vector<std::string> before = entry_.value("arguments", std::vector<std::string>());
    std::erase(before, "--resume"), std::erase(arguments, "--resume");
    return succeeded() && before == arguments;
  }
  void adopt(const std::string& print) {
    entry_["fingerprint"] = print;
    save();
  }
  void start(const std::string& print, const std::vector<std::string>& arguments) {
    const double before = same(print) ? seconds() : 0;  // an interrupted job's time counts as well
    entry_ = {{"fingerprint", print}, {"arguments", arguments}, {"seconds", before}};
    save();
  }
  void finish(int code, double more_seconds) {
    entry_["exit_code"] = code;
    entry_["seconds"] = seconds() + more_seconds;
    save();
  }

 private:
  void save() const {
    make_directories(path_.parent_path());
    Json jobs = fs::exists(path_) ? read_json(path_) : Json::object();
    jobs[key_] = entry_;
    write_json(path_, jobs);
  }
  fs::path path_;
  std::string key_;
  Json entry_ = Json::object();
};

void move_aside(const fs::path& folder) {
  fs::path old = folder;
  for (int i = 1; fs::exists(old); ++i) old = fmt::format("{}.old-{}", folder.string(), i);
  fs::rename(folder, old);
  log::info("{}: made by an older version of its job, now {}", folder.string(), old.filename().string());
}

struct ChainResult {
  bool ok = true, ran = false;  // ran: some job was started, now or in the chain before
  std::string detail = {};
  std::string fingerprint = {};
  double seconds = 0;
};

ChainResult run_chain(const PlannedRun& run, const std::string& label, const ChainResult& before,
                      const RunOptions& options) {
  ChainResult result{.ran = before.ran, .fingerprint = before.fingerprint};
  for (const PlannedJob& job : run.jobs) {
    Record record(job);
    result.fingerprint = fingerprint(job, run, result.fingerprint);
    // Who deletes a job's folder wants it made again; other commands need not leave one.
    const bool writes = job.command == "train" || job.command == "eval" || job.command == "sample";
    if (options.keep_finished && !result.ran && !record.same(result.fingerprint) && record.finished_as(job_arguments(job, run)) && fs::exists(job.folder)) {
      log::warn("{} / {}: kept, though its config, or a job before it, is another now", label, job.name);
      record.adopt(result.fingerprint);
    }
    if (record.done(result.fingerprint) && (!writes || fs::exists(job.folder))) {
      log::info("{} / {}: finished before, skipped", label, job.name);
      result.seconds += record.seconds();
      continue;
    }
    if (record.known() && !record.same(result.fingerprint) && fs::exists(job.folder)) move_aside(job.folder);
    const std::vector<std::string> arguments = job_arguments(job, run);
    log::info("{} / {}: fewstep {}", label, job.name, fmt::format("{}", fmt::join(arguments, " ")));
    record.start(result.fingerprint, arguments);
    result.ran = true;
    const auto start = std::chrono::steady_clock::now();
    const int code = run_process(options.program, arguments);
    record.finish(code, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    result.seconds += record.seconds();
    if (code == kInterrupted || signals::stop_requested())
      throw Interrupted(
          fmt::format("experiment stopped in {} / {}; the same command continues there", label, job.name));
    if (code != 0) {
      result.ok = false;
      result.detail = fmt::format("job '{}' ended with exit code {}", job.name, code);
      return result;
    }
  }
  return result;
}

eval::ResultRow measured_in(const fs::path& folder, const std::string& measured) {
  const fs::path path = folder / "results.json";
  const eval::Results results = eval::load_results(path);
  for (const eval::ResultRow& row : results.rows)
    if (row.label == measured) return row;
  std::vector<std::string> labels;
  for (const eval::ResultRow& row : results.rows) labels.push_back(row.label);
  fail<DataError>("{}: no row for 'measured': {}", path.string(), not_one_of(measured, labels));
}

// Of the shared job the row points to, or of its last eval job; nullopt when there is neither.
std::optional<eval::ResultRow> measured_row(const PlannedRow& row, const PlannedRun& run) {
  if (!row.results.empty()) return measured_in(row.results, row.measured);
  for (auto job = run.jobs.rbegin(); job != run.jobs.rend(); ++job)
    if (job->command == "eval" && (row.measured_job.empty() || job->name == row.measured_job))
      return measured_in(job->folder, row.measured);
  return std::nullopt;
}

RowOutcome run_row(const PlannedRow& row, const ChainResult& shared, const RunOptions& options) {
  RowOutcome outcome{.label = row.label, .scale = row.scale, .point = row.point};
  outcome.status = Status::done;
  std::vector<eval::ResultRow> measured;
  for (const PlannedRun& run : row.runs) {
    const std::string label = run.seeded ? fmt::format("{} (seed {})", row.label, run.seed) : row.label;
    const ChainResult chain = run_chain(run, label, shared, options);
    outcome.seconds += chain.seconds;
    if (!chain.ok) {
      outcome.status = Status::failed;
      outcome.detail = run.seeded ? fmt::format("seed {}: {}", run.seed, chain.detail) : chain.detail;
      log::error("{}: {}; the other rows go on", row.label, outcome.detail);
      continue;
    }
    if (auto one = measured_row(row, run)) measured.push_back(std::move(*one));
  }
  if (!measured.empty()) outcome.result = mean_over_seeds(row.label, measured);
  return outcome;
}

// A row that was not asked for now but finished earlier keeps its place in the table.
RowOutcome earlier_outcome(const PlannedRow& row) {
  RowOutcome outcome{.label = row.label, .scale = row.scale, .point = row.point};
  std::vector<eval::ResultRow> measured;
  if (!row.results.empty() && !fs::exists(row.results / "results.json")) return outcome;
  for (const PlannedRun& run : row.runs) {
    for (const PlannedJob& job : run.jobs) {
      const Record record(job);
      if (!record.succeeded()) return outcome;
      outcome.seconds += record.seconds();
    }
    if (auto one = measured_row(row, run)) measured.push_back(std::move(*one));
  }
  if (!measured.empty()) outcome.result = mean_over_seeds(row.label, measured);
  outcome.status = Status::done;
  return outcome;
}

bool chosen(const PlannedRow& row, const RunOptions& options) {
  return options.only.empty() || row.label == options.only || row.label.starts_with(options.only + ", ") ||
         row.label.starts_with(options.only + "; ");
}

// A full row that was asked for by name has to run, or to say all it lacks.
void refuse_what_cannot_run(const Plan& plan, const RunOptions& options) {
  if (options.only.empty()) return;
  for (const PlannedRow& row : plan.rows) {
    if (row.scale != Scale::full || !chosen(row, options)) continue;
    const auto [text, complete] = describe_needs(row.needs);
    if (!complete || row.runs[0].jobs.empty())
      fail<ConfigError>("row '{}' cannot run yet: {}", row.label, text.empty() ? "it has no jobs" : text);
    if (options.scale != Scale::full)
      fail<ConfigError>("row '{}' is of full scale ({}): add --scale full", row.label, text);
  }
}

}  // namespace

void check_configs(const Plan& plan) {
  for (const PlannedJob& job : plan.shared.jobs) fingerprint(job, plan.shared, "");
  for (const PlannedRow& row : plan.rows)
    for (const PlannedRun& run : row.runs)
      for (const PlannedJob& job : run.jobs) fingerprint(job, run, "");
}

std::string_view status_name(Status status) {
  static constexpr std::string_view names[] = {"done", "failed", "waiting", "not runnable yet"};
  return names[static_cast<int>(status)];
}

bool Outcome::all_done() const {
  return std::none_of(rows.begin(), rows.end(), [](const RowOutcome& r) { return r.status == Status::failed; });
}

bool has_own_seed(const PlannedJob& job) {
  return std::any_of(job.overrides.begin(), job.overrides.end(), [](const std::string& o) { return o.starts_with("seed="); });
}

std::vector<std::string> job_arguments(const PlannedJob& job, const PlannedRun& run) {
  std::vector<std::string> arguments = split(job.command, ' ');
  if (!job.target.empty()) arguments.push_back(job.target);
  arguments.insert(arguments.end(), job.overrides.begin(), job.overrides.end());
  const std::string seed = fmt::format("seed={}", run.seed);
  const bool seeded = run.seeded && !has_own_seed(job);
  if (job.command == "train") {
    if (seeded) arguments.push_back(seed);
    arguments.insert(arguments.end(), {"--run-dir", job.folder.string()});
    if (fs::exists(job.folder / "checkpoints")) arguments.push_back("--resume");
  } else if (job.command == "eval") {
    if (seeded) arguments.push_back(seed);
    arguments.push_back("out=\"" + job.folder.string() + "\"");
  } else if (job.command == "sample") {
    if (run.seeded) arguments.insert(arguments.end(), {"--seed", std::to_string(run.seed)});
    arguments.insert(arguments.end(), {"--out", job.folder.string()});
  }
  arguments.insert(arguments.end(), job.args.begin(), job.args.end());
  return arguments;
}

int run_process(const fs::path& program, const std::vector<std::string>& arguments) {
  std::vector<std::string> owned = {program.string()};
  owned.insert(owned.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& a : owned) argv.push_back(a.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, STDERR_FILENO, STDOUT_FILENO);  // stdout is the table's
  pid_t child = 0;
  const int error = posix_spawn(&child, program.c_str(), &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) fail<DataError>("{}: cannot be started: {}", program.string(), std::strerror(error));
  bool told = false;
  for (int status = 0;;) {
    const pid_t ended = waitpid(child, &status, WNOHANG);
    if (ended < 0 && errno != EINTR) fail("waiting for process {}: {}", child, std::strerror(errno));
    if (ended == child) return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    if (signals::stop_requested() && !told) {
      kill(child, SIGTERM);  // it saves and exits 130
      told = true;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

eval::ResultRow mean_over_seeds(const std::string& label, const std::vector<eval::ResultRow>& runs) {
  FEW_CHECK(!runs.empty(), "the mean of no runs");
  eval::ResultRow mean = runs[0];
  mean.label = label;
  mean.seeds.clear();
  for (const eval::ResultRow& run : runs) mean.seeds.insert(mean.seeds.end(), run.seeds.begin(), run.seeds.end());
  const double n = static_cast<double>(runs.size());
  if (runs.size() == 1) return mean;
  mean.metrics.clear();
  for (const auto& [name, first] : runs[0].metrics) {
    std::vector<double> values;
    double sampling = 0;  // of one run: what its finite number of images leaves open
    for (const eval::ResultRow& run : runs)
      if (const auto it = run.metrics.find(name); it != run.metrics.end())
        values.push_back(it->second.value), sampling += it->second.ci95 / n;
    // Encoders trained per seed have other hashes, hence other names: their numbers are not averaged.
    if (values.size() != runs.size()) continue;
    double sum = 0, squares = 0;
    for (double v : values) sum += v / n;
    for (double v : values) squares += (v - sum) * (v - sum);
    eval::Value value = first;
    value.value = sum;
    value.ci95 = eval::student_t95(static_cast<int64_t>(runs.size()) - 1) * std::sqrt(squares / (n - 1) / n);
    if (sampling > 0)
      value.note += fmt::format("{}sampling ± {} a seed", value.note.empty() ? "" : "; ", eval::format_number(sampling));
    mean.metrics[name] = value;
  }
  if (mean.metrics.empty())
    log::warn("{}: the seeds share no metric name (encoders with different weights?); judge all seeds with one encoder",
              label);
  mean.latency.p50 = mean.latency.p95 = 0;
  mean.steps = mean.nfe = mean.step_compression = 0;
  for (const eval::ResultRow& run : runs) {
    mean.latency.p50 += run.latency.p50 / n, mean.latency.p95 += run.latency.p95 / n;
    mean.steps += run.steps / n, mean.nfe += run.nfe / n, mean.step_compression += run.step_compression / n;
  }
  return mean;
}

std::pair<std::string, bool> describe_needs(const NeedsConfig& needs) {
  std::string text;
  std::vector<std::string> missing = needs.missing;
  for (const std::string& file : needs.files)
    if (!fs::exists(file)) missing.push_back(file);
  if (!needs.model_config.empty()) {
    const nn::BuildScope meta(at::kMeta);
    const Json json = read_json(needs.model_config);
    const auto module = models::find_model_kind(json, needs.model_config).build(json);
    const double parameters = static_cast<double>(module->parameter_count());
    text += fmt::format("{} parameters; {} a rank before activations", human_count(parameters),
                        human_bytes(static_cast<uint64_t>(parameters * needs.bytes_per_parameter)));
    // 6 FLOP a parameter and token: 2 forward, 4 backward (Kaplan et al. 2020).
    const double flop = 6 * parameters * static_cast<double>(needs.tokens_per_sample * needs.batch_size);
    if (flop > 0)
      text += fmt::format("; {} TFLOP a step, {} on each of {} devices", eval::format_number(flop * 1e-12),
                          eval::format_number(flop * 1e-12 / static_cast<double>(needs.gpus)), needs.gpus);
    if (flop > 0 && needs.steps > 0 && !needs.gpu.empty())
      text += fmt::format("; {} steps are at least {} hours of {} at its peak", needs.steps,
                          eval::format_number(flop * static_cast<double>(needs.steps) / 3600 /
                                              find_entry(gpu_peaks(), needs.gpu, "gpu").flops),
                          needs.gpu);
  }
  if (!missing.empty()) text += fmt::format("{}missing: {}", text.empty() ? "" : "; ", fmt::join(missing, ", "));
  return {text, missing.empty()};
}

Outcome run_experiment(const ExperimentConfig& c, const RunOptions& options) {
  const Plan plan = make_plan(c);
  std::vector<std::string> labels;
  bool any = false;
  for (const PlannedRow& row : plan.rows) labels.push_back(row.label), any |= chosen(row, options);
  if (!any) fail<ConfigError>("--only: no such row: {}", not_one_of(options.only, labels));
  refuse_what_cannot_run(plan, options);
  check_configs(plan);  // a typing error shows now, not after hours

  Outcome outcome;
  const ChainResult shared = run_chain(plan.shared, "shared", {}, options);
  if (!shared.ok) fail("the rows need the shared jobs: {}", shared.detail);
  for (const PlannedRow& row : plan.rows) {
    RowOutcome one{.label = row.label, .scale = row.scale, .point = row.point};
    if (row.scale == Scale::full) {
      const auto [text, complete] = describe_needs(row.needs);
      one.detail = text;
      one.status = complete && !row.runs[0].jobs.empty() ? Status::waiting : Status::not_runnable;
    }
    if (chosen(row, options) &&
        (row.scale == Scale::tiny || (options.scale == Scale::full && one.status == Status::waiting)))
      one = run_row(row, shared, options);
    else if (row.scale == Scale::tiny)
      one = earlier_outcome(row);
    for (const PlannedRun& run : row.runs)
      for (const PlannedJob& job : run.jobs)
        if (fs::exists(job.folder / "report.html") && job.command == "eval") {
          outcome.reports.push_back(job.folder / "report.html");
          if (job.name == c.report && one.status == Status::done &&
              (job.folder / "report.html") != plan.out / "report.html") {
            make_directories(plan.out);  // its jobs may all have folders elsewhere
            write_text_atomic(plan.out / "report.html", read_text(job.folder / "report.html"));
          }
        }
    outcome.rows.push_back(std::move(one));
  }
  return outcome;
}

}  // namespace fewstep::experiment
