#include "tools/experiment_config.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <functional>
#include <iterator>
#include <map>
#include <set>

#include "src/base/error.h"
#include "src/base/table.h"
#include "src/base/text.h"

namespace fewstep::experiment {
namespace fs = std::filesystem;

void describe(config::Visitor& v, JobConfig& c) {
  v.require("name");
  v.field("name", c.name, "of the job inside its row; ${run:name} is its folder");
  v.field("command", c.command, "train, eval, sample, or another subcommand");
  v.field("target", c.target, "config file or model folder the command is given");
  v.field("folder", c.folder, "where it writes; empty: ${row}/<name>");
  v.field("set", c.set, "keys of the target's config, over its file; a `seed` among them stays, whatever `seeds` says");
  v.field("args", c.args, "further arguments as they are");
}

void describe(config::Visitor& v, NeedsConfig& c) {
  v.field("model_config", c.model_config, "config.json of the trained network");
  v.field("tokens_per_sample", c.tokens_per_sample, "positions one sample takes in it", config::kNonNegative);
  v.field("batch_size", c.batch_size, "samples a step", config::kNonNegative);
  v.field("gpus", c.gpus, "devices the batch is divided by", config::kAtLeastOne);
  v.field("bytes_per_parameter", c.bytes_per_parameter, "weights, gradients and moments", config::kPositive);
  v.field("steps", c.steps, "optimiser steps of the training", config::kNonNegative);
  v.field("gpu", c.gpu, "the least hours of this device are said: a100, h100 or rtx4090");
  if (!c.gpu.empty()) {
    const std::vector<std::string> known = names_of(gpu_peaks());
    v.check(std::find(known.begin(), known.end(), c.gpu) != known.end(), "gpu", not_one_of(c.gpu, known));
  }
  v.field("files", c.files, "paths that must exist");
  v.field("missing", c.missing, "what fewstep itself cannot do yet");
}

void describe(config::Visitor& v, RowConfig& c) {
  static constexpr config::Choice kScales[] = {{"tiny", 0}, {"full", 1}};
  v.require("label");
  v.field("label", c.label, "name of the row in the table");
  v.field("scale", c.scale, "tiny rows run here; full rows say what they need", kScales);
  v.field("jobs", c.jobs, "the chain of jobs, in order");
  v.field("seeds", c.seeds, "instead of the experiment's");
  v.field("matrix", c.matrix, "instead of the experiment's");
  v.field("results_of", c.results_of, "shared eval job whose results are this row's; empty: its own last eval job");
  v.field("measured", c.measured, "instead of the experiment's");
  v.field("also", c.also, "labels of further rows in the eval job's results (its variants) that are rows of the table");
  v.field("each_eval", c.each_eval, "every eval job is a row of the table, labelled <label>; <job>");
  v.field("needs", c.needs, "of a full row");
}

void describe(config::Visitor& v, ExperimentConfig& c) {
  v.require("name");
  v.field("name", c.name, "name of the experiment");
  v.field("question", c.question, "what the table answers");
  v.field("out", c.out, "folder of the runs; empty: runs/experiments/<name>");
  v.field("shared", c.shared, "jobs every row needs, run once before all rows");
  v.require("rows");
  v.field("rows", c.rows, "rows of the table");
  v.field("matrix", c.matrix, "<job>.<key>: [values]; every row is run for every combination");
  v.field("seeds", c.seeds, "each row is run once per seed; empty: once, with the seeds of its configs");
  v.field("measured", c.measured, "label of the row taken from the eval jobs' results.json");
  v.field("columns", c.columns, "metric names or their beginnings, in this order; empty: all");
  v.field("curve_x", c.curve_x,
          "metric (or its beginning) along x of curve.svg: a line a row, a point a value of the matrix, or an eval job of each_eval");
  v.field("curve_y", c.curve_y, "metric along y");
  v.field("curve_also", c.curve_also, "further metrics along x, each a panel of its own under the first");
  v.field("curve_points", c.curve_points, "every row is a point with its name instead, both axes logarithmic");
  v.check(c.curve_x.empty() == c.curve_y.empty(), "curve_y", "curve_x and curve_y are given together");
  v.field("report", c.report, "job whose report.html becomes the experiment's");
}

void describe(config::Visitor& v, PaperRow& c) {
  v.require("label");
  v.field("label", c.label, "row of the table, as in run.yaml");
  v.field("metrics", c.metrics, "column: number as printed");
}

void describe(config::Visitor& v, PaperConfig& c) {
  v.field("source", c.source, "publication and table");
  v.field("rows", c.rows, "its rows");
}

std::span<const GpuPeak> gpu_peaks() {
  static constexpr GpuPeak table[] = {{"a100", 312e12}, {"h100", 989e12}, {"rtx4090", 165e12}};
  return table;
}

std::vector<std::string> flow_items(const std::string& yaml) {
  std::string_view text = trim(yaml);
  if (!text.starts_with('[') || !text.ends_with(']')) return {std::string(text)};
  text = text.substr(1, text.size() - 2);
  std::vector<std::string> items;
  std::string item;
  int depth = 0;
  char quote = 0;
  for (char c : text) {
    if (quote)
      quote = c == quote ? 0 : quote;
    else if (c == '"' || c == '\'')
      quote = c;
    else if (c == '[' || c == '{')
      ++depth;
    else if (c == ']' || c == '}')
      --depth;
    if (c == ',' && depth == 0 && !quote) {
      items.emplace_back(trim(item));
      item.clear();
    } else {
      item += c;
    }
  }
  if (!trim(item).empty()) items.emplace_back(trim(item));
  return items;
}

std::string folder_name(const std::string& label) {
  std::string out;
  for (char c : label) out += std::isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '-' || c == '_' ? c : '-';
  return out.empty() || out[0] == '.' ? "row" + out : out;
}

namespace {

using Point = std::vector<std::pair<std::string, std::string>>;

// All combinations, the last key fastest.
std::vector<Point> cartesian(const config::Overrides& matrix) {
  std::vector<Point> points = {{}};
  for (const auto& [key, values] : matrix) {
    std::vector<Point> longer;
    const std::vector<std::string> items = flow_items(values);
    if (items.empty()) fail<ConfigError>("matrix: '{}' has no values", key);
    for (const Point& point : points)
      for (const std::string& item : items) {
        longer.push_back(point);
        longer.back().emplace_back(key, item);
      }
    points = std::move(longer);
  }
  return points;
}

// "${name}" and "${run:name}" by `value`, which throws for unknown names.
std::string substitute(const std::string& text, const std::function<std::string(const std::string&)>& value) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const size_t open = text.find("${", i);
    if (open == std::string::npos) return out + text.substr(i);
    const size_t close = text.find('}', open);
    if (close == std::string::npos) fail<ConfigError>("'{}': '${{' without '}}'", text);
    out += text.substr(i, open - i) + value(text.substr(open + 2, close - open - 2));
    i = close + 1;
  }
  return out;
}

// The jobs of one row and seed. `before`: shared jobs that may be referred to as well.
PlannedRun plan_run(const std::vector<JobConfig>& jobs, const PlannedRun* before, PlannedRun run,
                    const std::string& label, const fs::path& out, const Point& point) {
  std::set<std::string> used;
  for (const JobConfig& job : jobs) {
    const auto value = [&](const std::string& name) -> std::string {
      if (name == "seed") return std::to_string(run.seed);
      if (name == "label") return label;
      if (name == "row") return run.folder.string();
      if (name == "out") return out.string();
      std::vector<std::string> known = {"seed", "label", "row", "out"};
      for (const PlannedRun* scope : {static_cast<const PlannedRun*>(&run), before})
        if (scope)
          for (const PlannedJob& earlier : scope->jobs) {
            if (name == "run:" + earlier.name) return earlier.folder.string();
            known.push_back("run:" + earlier.name);
          }
      fail<ConfigError>("row '{}', job '{}': ${{{}}} is not known here; jobs are known after they are listed: {}",
                        label, job.name, name, not_one_of(name, known));
    };
    if (!used.insert(job.name).second) fail<ConfigError>("row '{}': two jobs are named '{}'", label, job.name);
    PlannedJob planned{.name = job.name,
                       .command = job.command,
                       .target = substitute(job.target, value),
                       .folder = {},
                       .overrides = {},
                       .args = {}};
    planned.folder = job.folder.empty() ? run.folder / folder_name(job.name) : fs::path(substitute(job.folder, value));
    for (const auto& [key, text] : job.set)  // a seed is a number, though YAML has to quote its placeholder
      planned.overrides.push_back(key + "=" + (text == "\"${seed}\"" ? value("seed") : substitute(text, value)));
    for (const auto& [key, text] : point)
      if (key.starts_with(job.name + ".")) planned.overrides.push_back(key.substr(job.name.size() + 1) + "=" + text);
    for (const std::string& arg : job.args) planned.args.push_back(substitute(arg, value));
    run.jobs.push_back(std::move(planned));
  }
  return run;
}

void check_matrix(const RowConfig& row, const config::Overrides& matrix) {
  for (const auto& [key, values] : matrix) {
    const bool found = std::any_of(row.jobs.begin(), row.jobs.end(),
                                   [&, k = key](const JobConfig& j) { return k.starts_with(j.name + "."); });
    std::vector<std::string> names;
    for (const JobConfig& job : row.jobs) names.push_back(job.name);
    if (!found)
      fail<ConfigError>("matrix: '{}' must begin with a job of row '{}' ({}), as in <job>.<key>", key, row.label,
                        fmt::join(names, ", "));
  }
}

fs::path shared_results(const RowConfig& row, const PlannedRun& shared) {
  if (row.results_of.empty()) return {};
  std::vector<std::string> names;
  for (const PlannedJob& job : shared.jobs) {
    if (job.command != "eval") continue;
    if (job.name == row.results_of) return job.folder;
    names.push_back(job.name);
  }
  fail<ConfigError>("row '{}': results_of names no shared eval job: {}", row.label, not_one_of(row.results_of, names));
}

// What a job does, and all jobs before it in its chain: equal text, the same job.
std::string chain_text(const std::string& before, const PlannedJob& job, const PlannedRun& run) {
  return fmt::format("{}\n{} | {} | {} | {} | {} | {}", before, job.command, job.target, job.folder.lexically_normal().string(),
                     fmt::join(job.overrides, " "), fmt::join(job.args, " "), run.seeded ? run.seed : -1);
}

// Two jobs that write one folder would each undo the other, unless they are the same: rows may begin with the same jobs in the same
// folders, which are then run once. Rows of `each_eval` are one chain.
void check_folders(const Plan& plan) {
  std::map<fs::path, std::string> used;  // folder of a job -> its chain
  const auto check = [&](const PlannedRun& run, const std::string& label) {
    std::set<fs::path> own;
    std::string chain;
    for (const PlannedJob& job : run.jobs) {
      const fs::path folder = job.folder.lexically_normal();
      chain = chain_text(chain, job, run);
      const auto [it, added] = used.emplace(folder, chain);
      if (!own.insert(folder).second || (!added && it->second != chain))
        fail<ConfigError>("row '{}', job '{}': another job writes {} as well; put ${{row}} or ${{seed}} into 'folder'",
                          label, job.name, job.folder.string());
    }
  };
  check(plan.shared, "shared");
  for (const PlannedRow& row : plan.rows)
    for (const PlannedRun& run : row.runs) check(run, row.label);
}

// One line of the table for the row at this point of the matrix, or one for each of its eval jobs.
std::vector<PlannedRow> plan_row(const ExperimentConfig& c, const RowConfig& row, const Point& point,
                                 const Plan& plan) {
  const std::vector<int64_t>& seeds = row.seeds.empty() ? c.seeds : row.seeds;
  PlannedRow planned{.label = row.label,
                     .scale = row.scale,
                     .point = point,
                     .runs = {},
                     .results = shared_results(row, plan.shared),
                     .measured = row.measured.empty() ? c.measured : row.measured,
                     .measured_job = {},
                     .needs = row.needs};
  for (const auto& [key, value] : point) planned.label += fmt::format(", {}={}", key.substr(key.rfind('.') + 1), value);
  for (size_t s = 0; s < std::max<size_t>(1, seeds.size()); ++s) {
    PlannedRun run{.seed = seeds.empty() ? 0 : seeds[s],
                   .seeded = !seeds.empty(),
                   .folder = plan.out / folder_name(planned.label),
                   .jobs = {}};
    if (run.seeded) run.folder /= fmt::format("seed-{}", run.seed);
    planned.runs.push_back(plan_run(row.jobs, &plan.shared, run, planned.label, plan.out, point));
  }
  std::vector<PlannedRow> rows;
  if (!row.each_eval) {
    rows.push_back(planned);
    for (const std::string& label : row.also) {
      rows.push_back(planned);
      rows.back().label += "; " + label, rows.back().measured = label;
    }
    return rows;
  }
  for (const JobConfig& job : row.jobs) {
    if (job.command != "eval") continue;
    rows.push_back(planned);
    rows.back().label += "; " + job.name, rows.back().measured_job = job.name;
  }
  if (rows.empty()) fail<ConfigError>("row '{}': each_eval, but no job is an eval", row.label);
  return rows;
}

}  // namespace

Plan make_plan(const ExperimentConfig& c) {
  Plan plan{.out = c.out.empty() ? fs::path("runs/experiments") / c.name : fs::path(c.out), .shared = {}, .rows = {}};
  plan.shared.folder = plan.out / "shared";
  plan.shared = plan_run(c.shared, nullptr, plan.shared, "shared", plan.out, {});
  std::set<std::string> labels;
  std::set<fs::path> folders;
  for (const RowConfig& row : c.rows) {
    const config::Overrides& matrix = row.matrix.empty() ? c.matrix : row.matrix;
    check_matrix(row, matrix);
    for (const Point& point : cartesian(matrix)) {
      std::vector<PlannedRow> planned = plan_row(c, row, point, plan);
      bool fresh = folders.insert(planned[0].runs[0].folder).second;
      for (const PlannedRow& one : planned) fresh = labels.insert(folder_name(one.label)).second && fresh;
      if (!fresh) fail<ConfigError>("rows: two are labelled '{}'", planned[0].label);
      std::move(planned.begin(), planned.end(), std::back_inserter(plan.rows));
    }
  }
  if (plan.rows.empty()) fail<ConfigError>("experiment '{}' has no rows", c.name);
  check_folders(plan);
  return plan;
}

}  // namespace fewstep::experiment
