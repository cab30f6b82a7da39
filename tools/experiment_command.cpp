// fewstep experiment DIR [--only LABEL] [--scale tiny|full]
#include <CLI/CLI.hpp>

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/json.h"
#include "src/base/log.h"
#include "src/config/config.h"
#include "tools/commands.h"
#include "tools/experiment_tables.h"

namespace fewstep {
namespace {
namespace fs = std::filesystem;

struct ExperimentArguments {
  std::string folder, only;
  experiment::Scale scale = experiment::Scale::tiny;
  bool save = false, keep_finished = false;
};

const std::map<std::string, experiment::Scale> kScales = {{"tiny", experiment::Scale::tiny},
                                                          {"full", experiment::Scale::full}};

void run(const ExperimentArguments& a) {
  const fs::path folder = fs::is_directory(a.folder) ? fs::path(a.folder) : fs::path(a.folder).parent_path();
  const fs::path file = fs::is_directory(a.folder) ? folder / "run.yaml" : fs::path(a.folder);
  const auto config = config::load<experiment::ExperimentConfig>(file);
  std::optional<experiment::PaperConfig> paper;
  if (fs::exists(folder / "paper.yaml")) paper = config::load<experiment::PaperConfig>(folder / "paper.yaml");
  const auto outcome = experiment::run_experiment(
      config, {.program = fs::read_symlink("/proc/self/exe"), .only = a.only, .scale = a.scale, .keep_finished = a.keep_finished});
  const experiment::PaperConfig* beside = paper ? &*paper : nullptr;
  const fs::path out = experiment::make_plan(config).out;
  experiment::write_outcome(out, config, outcome, beside);
  if (a.save) {
    const fs::path saved = folder / "results.json";
    const Json now = experiment::outcome_json(config, outcome);
    write_json(saved, fs::exists(saved) ? experiment::keep_earlier_rows(now, read_json(saved)) : now);
    if (const std::string svg = experiment::curve(config, outcome); !svg.empty()) write_text_atomic(folder / "curve.svg", svg);
  }
  fmt::print("{}\n\n{}", config.question, experiment::to_markdown(experiment::make_table(config, outcome, beside)));
  log::info("tables in {} (results.json, .md, .csv, .tex)", out.string());
  for (const fs::path& report : outcome.reports) log::info("report: {}", report.string());
  if (!outcome.all_done()) throw Error("some rows failed; see the table. The same command runs only those again");
}

}  // namespace

void add_experiment_command(CLI::App& app) {
  auto* command = app.add_subcommand("experiment", "run the rows of a paper table, or continue them");
  auto a = std::make_shared<ExperimentArguments>();
  command->add_option("DIR", a->folder, "folder with run.yaml (and paper.yaml)")->required();
  command->add_option("--only", a->only, "this row only (with all its matrix points)");
  command->add_option("--scale", a->scale, "full: also full-scale rows, where nothing is missing")
      ->transform(CLI::CheckedTransformer(kScales));
  command->add_flag("--save", a->save, "also write DIR/results.json, the file that is committed");
  command->add_flag("--keep-finished", a->keep_finished,
                    "jobs that finished with the same command line count as done, though a config has changed (a key a newer version added)");
  command->footer(
      "Examples:\n"
      "  fewstep experiment experiments/quickstart\n"
      "  fewstep experiment experiments/quickstart --only autoregressive --save\n"
      "Finished jobs are skipped, interrupted trainings continue. What run.yaml may hold: fewstep config explain "
      "experiment");
  command->callback([a] { run(*a); });
}

}  // namespace fewstep
