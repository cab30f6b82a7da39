// fewstep model info|verify DIR
#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "src/base/error.h"
#include "src/base/text.h"
#include "src/diffusion/verify_scheduler.h"
#include "src/io/safetensors.h"
#include "src/models/model.h"
#include "src/models/model_folder.h"
#include "src/models/stability_checkpoint.h"
#include "src/models/verify.h"
#include "src/models/weight_files.h"
#include "src/tensor/ops.h"
#include "src/pipelines/verify_pipeline.h"
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

// "float16" or "float16 512, float32 4": dtypes and how many tensors have them.
std::string dtypes_of(const std::vector<std::string>& dtypes) {
  std::map<std::string, int64_t> counts;
  for (const std::string& dtype : dtypes) ++counts[dtype];
  std::string out;
  for (const auto& [dtype, count] : counts) out += (out.empty() ? "" : ", ") + (counts.size() == 1 ? dtype : fmt::format("{} {}", dtype, count));
  return out;
}

// From the headers alone; "" for a folder without weights.
std::string stored_as(const std::filesystem::path& folder) {
  if (!models::has_weights(folder)) return "; no weights";
  const std::filesystem::path weights = models::find_weights(folder);
  const io::Safetensors file(weights);
  std::vector<std::string> dtypes;
  for (const std::string& name : file.names()) dtypes.push_back(file.info(name).dtype);
  return fmt::format("; stored as {} in {}", dtypes_of(dtypes), weights.filename().string());
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
  fmt::print("{}{}: {} values ({}), {} in float32; parameters {}{}\n", label, kind.name, total, human_count(static_cast<double>(total)),
             human_bytes(static_cast<uint64_t>(total) * 4), module->parameter_count(), stored_as(folder));
  for (const Row& row : rows) fmt::print("  {:<32} {:>5} tensors {:>14}\n", row.name, row.tensors, row.values);
}

void print_single_file(const std::filesystem::path& path) {
  const models::SingleFile file = models::read_single_file(path);
  const auto text = [&](const char* key) { const auto it = file.metadata.find(key); return it == file.metadata.end() ? "" : it->second; };
  const std::string made_of = file.files.contains("model_index.json") ? models::class_name_of(Json::parse(file.files.at("model_index.json"), nullptr, false)) : "";
  fmt::print("single file: {}, predicts {}{}; {}\n", file.release != nullptr ? file.release->name : made_of.empty() ? "pipeline" : made_of,
             !text("modelspec.prediction_type").empty() ? text("modelspec.prediction_type") : file.v_prediction ? "v" : "epsilon", file.zero_terminal_snr ? ", zero terminal SNR" : "",
             file.files.empty() ? "configs are told from the tensors" : fmt::format("holds {} files of its folder", file.files.size()));
  if (!text("modelspec.title").empty())
    fmt::print("  {} ({} {})\n", text("modelspec.title"), text("modelspec.architecture"), text("modelspec.resolution"));
  for (const models::SingleFile::Network& n : file.networks) {
    int64_t values = 0;
    std::vector<std::string> dtypes;
    for (const auto& [name, t] : n.tensors) values += t.numel(), dtypes.emplace_back(c10::toString(t.scalar_type()));
    for (std::string& d : dtypes) d = d == "Half" ? "F16" : d == "Float" ? "F32" : d == "BFloat16" ? "BF16" : d;
    fmt::print("{}: {}: {} values ({}) in {} tensors; stored as {} under '{}'\n", n.component, models::class_name_of(n.config), values,
               human_count(static_cast<double>(values)), n.tensors.size(), dtypes_of(dtypes), n.prefix);
  }
  if (!file.extra.empty()) fmt::print("other tensors: {} ({}{})\n", file.extra.size(), file.extra.begin()->first, file.extra.size() > 1 ? ", ..." : "");
}

// A network's folder, or a pipeline's: model_index.json names [library, class] for each component folder.
void model_info(const std::filesystem::path& path) {
  if (std::filesystem::is_regular_file(path) && path.extension() == ".safetensors") return print_single_file(path);
  const bool alone = std::filesystem::exists(path / "config.json") && !std::filesystem::exists(path / "model_index.json");
  const std::filesystem::path folder = alone ? path : models::as_model_folder(path);
  const std::filesystem::path index_path = folder / "model_index.json";
  if (!std::filesystem::exists(index_path)) return print_network(folder, "");
  const Json index = read_json(index_path);
  fmt::print("{}\n", models::class_name_of(index).empty() ? "pipeline" : models::class_name_of(index));
  for (const auto& [name, value] : index.items()) {
    if (!value.is_array() || !std::filesystem::is_directory(folder / name)) continue;
    const bool network = std::filesystem::exists(folder / name / "config.json");
    const std::string class_name = network ? models::class_name_of(read_json(folder / name / "config.json")) : "";
    const auto kinds = models::model_kinds();
    if (network && std::any_of(kinds.begin(), kinds.end(), [&](const models::ModelKind& k) { return k.name == class_name; }))
      print_network(folder / name, name + ": ");
    else
      fmt::print("{}: {}\n", name, value.back().is_string() ? value.back().get<std::string>() : "no weights");
  }
}

// What a golden folder is a folder of, by the file that says so; the first one that is there counts.
struct Verifier {
  const char* file;
  models::VerifyReport (*verify)(const std::filesystem::path& folder, const models::VerifyOptions& options);
};
constexpr Verifier kVerifiers[] = {{"model_index.json", pipelines::verify_pipeline},
                                   {"expected.json", models::verify_tokenizer},
                                   {"scheduler_config.json", diffusion::verify_scheduler},
                                   {"config.json", models::verify_model}};

models::VerifyReport verify_folder(const std::filesystem::path& folder, const models::VerifyOptions& options) {
  std::string known;
  for (const Verifier& v : kVerifiers) {
    if (std::filesystem::exists(folder / v.file)) return v.verify(folder, options);
    known += (known.empty() ? "" : ", ") + std::string(v.file);
  }
  fail<DataError>("{}: not a golden folder: there is none of {}", folder.string(), known);
}

void model_verify(const ModelFlags& flags, bool has_limit) {
  models::VerifyOptions options;
  options.all = flags.all;
  if (has_limit) options.limit = flags.limit;
  const models::VerifyReport report = verify_folder(flags.folder, options);
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
  CLI::App* info = model->add_subcommand("info", "Class, size and dtype of every component, without reading weights");
  info->add_option("DIR", flags->folder, "model folder (config.json, or model_index.json), run folder, or a checkpoint in a single file")->required();
  info->callback([flags] { model_info(flags->folder); });
  CLI::App* verify = model->add_subcommand("verify", "Run a golden folder and compare tensor by tensor");
  verify->add_option("DIR", flags->folder, "folder with config.json, weights and io.safetensors")->required();
  verify->add_flag("--all", flags->all, "an expected tensor that is not produced is a failure");
  CLI::Option* limit = verify->add_option("--limit", flags->limit, "limit on max_over_rms instead of 1e-4 (outputs) and 5e-4 (gradients)");
  verify->callback([flags, limit] { model_verify(*flags, limit->count() > 0); });
}

}  // namespace fewstep
