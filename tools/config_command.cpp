// fewstep config show|check|explain: reads configs and their bases, never data or weights.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "datasets/dataset.h"
#include "eval/protocol_config.h"
#include "src/base/error.h"
#include "src/base/table.h"
#include "src/config/config.h"
#include "src/pipelines/pipeline.h"
#include "tools/commands.h"
#include "tools/experiment_config.h"
#include "trainers/loop.h"

namespace fewstep {
namespace {

namespace fs = std::filesystem;
using Arguments = std::span<const std::string>;

// What `fewstep sample` takes as key=value, and configs under `generate:` and `sample:`. No file has it at its root.
constexpr std::string_view kSample = "sample";

template <class T>
std::string show(const fs::path& path, Arguments overrides) {
  T config = config::load<T>(path, overrides);
  return config::to_yaml(config);
}
template <class T>
std::string explain_file(const fs::path& path) {
  T config = config::load<T>(path);
  return config::explain(config);
}
template <class T>
std::string explain_defaults() {
  T config;
  return config::explain(config);
}

// What the root of a config file can be. A file is the first one whose key it has at its top; the last is the rest.
struct Root {
  std::string_view name, key;
  std::string (*show)(const fs::path&, Arguments);
  std::string (*explain_file)(const fs::path&);
  std::string (*explain)();
};
template <class T>
constexpr Root root(std::string_view name, std::string_view key) {
  return {name, key, show<T>, explain_file<T>, explain_defaults<T>};
}
constexpr Root kRoots[] = {
    root<experiment::ExperimentConfig>("experiment", "rows"),
    root<eval::ProtocolConfig>("protocol", "protocol"),
    root<eval::EvalConfig>("eval", "metrics"),
    root<RunConfig>("run", ""),
};

const Root& root_of(const fs::path& path) {
  const std::vector<std::string> keys = config::top_level_keys(path);
  for (const Root& r : kRoots)
    if (r.key.empty() || std::find(keys.begin(), keys.end(), r.key) != keys.end()) return r;
  return kRoots[std::size(kRoots) - 1];
}

// One entry of a table of kinds, described on its own.
template <class Config, class Kind>
std::string explain_kind(const Kind& kind) {
  const std::unique_ptr<Config> config = kind.make();
  return fmt::format(
      "kind: {}\n{}", kind.name,
      config::explain_string([](config::Visitor& v, void* p) { static_cast<Config*>(p)->describe(v); }, config.get()));
}

std::string explain(const std::string& what) {
  if (what.empty()) return kRoots[std::size(kRoots) - 1].explain();
  if (what == kSample) return explain_defaults<pipelines::GenerateOptions>();
  std::vector<std::string> known = {std::string(kSample)};
  for (const Root& r : kRoots) {
    if (r.name == what) return r.explain();
    known.emplace_back(r.name);
  }
  for (const TrainerKind& k : trainer_kinds()) {
    if (k.name == what) return explain_kind<TrainerConfig>(k);
    known.emplace_back(k.name);
  }
  for (const DatasetKind& k : dataset_kinds()) {
    if (k.name == what) return explain_kind<DatasetConfig>(k);
    known.emplace_back(k.name);
  }
  if (fs::exists(what)) return root_of(what).explain_file(what);
  fail<ConfigError>("no such file, and {}", not_one_of(what, known));
}

}  // namespace

void add_config_command(CLI::App& app) {
  CLI::App* config = app.add_subcommand("config", "Show, check or explain config files");
  config->require_subcommand(1);
  config->footer(
      "Examples:\n"
      "  fewstep config show configs/quickstart/vq.yaml loop.steps=200 > resolved.yaml\n"
      "  fewstep config check configs/quickstart/vq.yaml\n"
      "  fewstep config explain autoregressive");
  struct State {
    std::string path, what;
    std::vector<std::string> overrides;
  };
  const auto state = std::make_shared<State>();
  const auto add_file = [&](CLI::App* command) {
    command->add_option("CONFIG", state->path, "YAML file")->required();
    command->add_option("OVERRIDES", state->overrides, "key.path=value ...");
  };

  CLI::App* show_command = config->add_subcommand("show", "Print the resolved config: bases, overrides and defaults");
  add_file(show_command);
  show_command->callback([state] { fmt::print("{}", root_of(state->path).show(state->path, state->overrides)); });

  CLI::App* check_command = config->add_subcommand("check", "Report every problem (exit code 2), or say ok");
  add_file(check_command);
  check_command->callback([state] {
    const Root& root = root_of(state->path);
    root.show(state->path, state->overrides);
    fmt::print("{}: ok ({} config)\n", state->path, root.name);
  });

  CLI::App* explain_command = config->add_subcommand("explain", "Every key: type, default, range or choices, meaning");
  explain_command->add_option("WHAT", state->what,
                              "a config file, or run, eval, experiment, sample, a trainer's or a data set's name");
  explain_command->callback([state] { fmt::print("{}", explain(state->what)); });
}

}  // namespace fewstep
