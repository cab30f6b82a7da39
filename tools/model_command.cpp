// fewstep model info|verify DIR
#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "src/base/error.h"
#include "src/base/text.h"
#include "src/models/model.h"
#include "src/models/verify.h"
#include "tools/commands.h"


namespace fewstep {
namespace {

struct ModelFlags {
  std::string folder;
  bool all = false;
  double limit = 0;
};

// "model.layers.3.mlp.up_proj.weight" -> "model.layers": up to the first number, at most two names.
std::string component_of(const std::string& name) {
  const std::vector<std::string> parts = split(name, '.');
  std::string out;
  for (size_t i = 0; i + 1 < parts.size() && i < 2; ++i) {
    if (!parts[i].empty() && std::isdigit(static_cast<unsigned char>(parts[i][0]))) break;
    out += (i > 0 ? "." : "") + parts[i];
  }
  return out.empty() ? name : out;
}

void print_network(const std::filesystem::path& folder, const std::string& label) {
  const std::filesystem::path config_path = folder / "config.json";
  const Json config = read_json(config_path);
  const models::ModelKind& kind = models::find_model_kind(config, config_path.string());
  const nn::BuildScope meta(at::kMeta);
  const auto module = kind.build(config);
  struct Row {
    std::string name;
    int64_t tensors = 0, values = 0;
  };
  std::vector<Row> rows;
  int64_t total = 0;
  for (const NamedTensor& p : module->state()) {
    const std::string name = component_of(p.name);
    auto row = std::find_if(rows.begin(), rows.end(), [&](const Row& r) { return r.name == name; });
    if (row == rows.end()) row = rows.insert(rows.end(), {name});
    ++row->tensors;
    row->values += p.tensor.numel();
    total += p.tensor.numel();
  }
  fmt::print("{}{}: {} values ({}), {} in float32; parameters {}\n", label, kind.name, total, human_count(static_cast<double>(total)),
             human_bytes(static_cast<uint64_t>(total) * 4), module->parameter_count());
  for (const Row& row : rows) fmt::print("  {:<32} {:>5} tensors {:>14}\n", row.name, row.tensors, row.values);
}

// A network's folder, or a pipeline's: model_index.json names [library, class] for each component folder.
void model_info(const std::filesystem::path& folder) {
  const std::filesystem::path index_path = folder / "model_index.json";
  if (!std::filesystem::exists(index_path)) return print_network(folder, "");
  const Json index = read_json(index_path);
  fmt::print("{}\n", models::class_name_of(index).empty() ? "pipeline" : models::class_name_of(index));
  for (const auto& [name, value] : index.items()) {
    if (!value.is_array() || !std::filesystem::is_directory(folder / name)) continue;
    if (std::filesystem::exists(folder / name / "config.json"))
      print_network(folder / name, name + ": ");
    else
      fmt::print("{}: {}\n", name, value.back().is_string() ? value.back().get<std::string>() : "no weights");
  }
}

void model_verify(const ModelFlags& flags, bool has_limit) {
  models::VerifyOptions options;
  options.all = flags.all;
  if (has_limit) options.limit = flags.limit;
  const models::VerifyReport report = models::verify_model(flags.folder, options);
  fmt::print("{}", models::to_text(report));
  if (report.passed) return;
  int64_t failed = 0, absent = 0;
  for (const models::VerifyLine& line : report.lines) {
    failed += line.verdict == models::Verdict::fail;
    absent += line.verdict == models::Verdict::not_produced;
  }
  fail<Error>("{}: of {} tensors {} differ and {} are not produced", flags.folder, report.lines.size(), failed, absent);
}

}  // namespace

void add_model_command(CLI::App& app) {
  CLI::App* model = app.add_subcommand("model", "Look into a model folder, or prove a port");
  model->require_subcommand(1);
  auto flags = std::make_shared<ModelFlags>();
  CLI::App* info = model->add_subcommand("info", "Class and size of every component, without reading weights");
  info->add_option("DIR", flags->folder, "model folder: config.json, or model_index.json")->required();
  info->callback([flags] { model_info(flags->folder); });
  CLI::App* verify = model->add_subcommand("verify", "Run a golden folder and compare tensor by tensor");
  verify->add_option("DIR", flags->folder, "folder with config.json, weights and io.safetensors")->required();
  verify->add_flag("--all", flags->all, "an expected tensor that is not produced is a failure");
  CLI::Option* limit = verify->add_option("--limit", flags->limit, "limit on max_over_rms instead of 1e-4 (outputs) and 5e-4 (gradients)");
  verify->callback([flags, limit] { model_verify(*flags, limit->count() > 0); });
}

}  // namespace fewstep
