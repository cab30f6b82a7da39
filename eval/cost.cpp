#include "eval/cost.h"

#include <fstream>
#include <nlohmann/json.hpp>

#include "eval/in_loop.h"
#include "src/base/error.h"
#include "src/base/json.h"
#include "src/base/text.h"
#include "src/pipelines/autoregressive_pipeline.h"
#include "src/pipelines/diffusion_pipeline.h"
#include "src/tensor/ops.h"

namespace fewstep::eval {
namespace fs = std::filesystem;
namespace {

double diffusion_flops(const pipelines::DiffusionModel& model, const ImageSet& set) {
  if (set.runs.empty() || !set.runs[0].latents.defined()) return 0;
  const Tensor& latents = set.runs[0].latents;
  return set.nfe * model.unet->forward_flops(latents.size(2), latents.size(3), model.conditioner->context_length());
}

double token_flops(const pipelines::AutoregressivePipeline& pipeline, const ImageSet& set, const pipelines::GenerateOptions& options) {
  const models::LlamaForCausalLM& network = pipeline.transformer();
  const auto weights = static_cast<double>(network.parameter_count() - network.embedding_weight().numel());
  const auto length = static_cast<double>(pipeline.layout().image_length());
  const auto prompt = static_cast<double>(pipeline.layout().sequence_length()) - length;
  const decoding::DecoderKind kind = options.decoder.kind;
  const bool each_once = kind == decoding::DecoderKind::ar || kind == decoding::DecoderKind::zipar;
  // The prompt's pass also decides the first token.
  const double positions = each_once ? prompt + length - 1 : prompt + (set.steps - 1) * static_cast<double>(options.decoder.window);
  return 2 * weights * positions * (options.guidance == 1 ? 1 : 2);
}

// The run a folder belongs to, and the last step that counts: -1, all.
struct RunPart {
  fs::path run;
  int64_t last = -1;
};
RunPart run_part(fs::path folder) {
  folder = folder.lexically_normal();
  if (folder.filename().empty()) folder = folder.parent_path();
  const std::string name = folder.filename().string();
  if (folder.parent_path().filename() != "checkpoints" || !name.starts_with("step-")) return {folder};
  try {
    return {folder.parent_path().parent_path(), std::stoll(name.substr(5))};
  } catch (const std::exception&) {
    return {folder};
  }
}

}  // namespace

double image_flops(const pipelines::Pipeline& pipeline, const ImageSet& set, const pipelines::GenerateOptions& options) {
  if (const auto* diffusion = dynamic_cast<const pipelines::DiffusionPipeline*>(&pipeline))
    return diffusion_flops(diffusion->model(), set);
  if (const auto* tokens = dynamic_cast<const pipelines::AutoregressivePipeline*>(&pipeline))
    return token_flops(*tokens, set, options);
  return 0;
}

double training_flops(const fs::path& folder) {
  const RunPart part = run_part(folder);
  const fs::path path = part.run / "metrics.jsonl";
  if (!fs::exists(path)) fail<DataError>("training_runs: {} is not there; the cost of the training is not known", path.string());
  struct Interval {
    double seconds = 0, tflops = 0;
  };
  std::map<int64_t, Interval> lines;  // by step: a resumed run may have written one twice, the later one counts
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const Json j = Json::parse(line, nullptr, false);
    if (!j.is_object() || j.value("group", "train") != "train" || !j.contains("step") || !j.contains("tflops_per_second")) continue;
    lines[j.value("step", int64_t{0})] = {j.value("seconds", 0.0), j.value("tflops_per_second", 0.0)};
  }
  double flops = 0, before = 0;
  for (const auto& [step, interval] : lines) {
    if (part.last >= 0 && step > part.last) break;
    flops += 1e12 * interval.tflops * std::max(0.0, interval.seconds - before);
    before = interval.seconds;
  }
  if (flops <= 0) fail<DataError>("training_runs: {} has no tflops_per_second; its trainer does not count", path.string());
  return flops;
}

std::map<std::string, Value> cost_values(const EvalConfig& config, const pipelines::Pipeline& pipeline, const ImageSet& set,
                                         const pipelines::GenerateOptions& options) {
  std::map<std::string, Value> values;
  const int64_t n = set.images.size(0);
  if (config.baseline_nfe > 0 && set.nfe > 0)
    values["nfe_compression"] = {.value = static_cast<double>(config.baseline_nfe) / set.nfe, .n = n};
  if (const double flops = image_flops(pipeline, set, options); flops > 0)
    values["gflop_per_image"] = {.value = 1e-9 * flops, .n = n};
  if (!config.training_runs.empty()) {
    double flops = 0;
    for (const std::string& run : config.training_runs) flops += training_flops(run);
    values["training_tflop"] = {.value = 1e-12 * flops, .n = static_cast<int64_t>(config.training_runs.size())};
  }
  return values;
}

namespace {

// A table of the metrics `wanted` picks, with NFE in front where `with_nfe`.
template <class F>
ReportSection metric_table(const std::vector<ResultRow>& rows, std::string heading, bool with_nfe, F wanted) {
  ReportSection section{.heading = std::move(heading)};
  std::vector<std::string> names;
  for (const std::string& name : metric_names(rows))
    if (wanted(name)) names.push_back(name);
  if (names.empty()) return section;
  ReportTable table{.header = {"images"}, .rows = {}};
  if (with_nfe) table.header.push_back("NFE");
  table.header.insert(table.header.end(), names.begin(), names.end());
  for (const ResultRow& row : rows) {
    std::vector<std::string> cells = {row.label};
    if (with_nfe) cells.push_back(row.nfe > 0 ? fmt::format("{:.4g}", row.nfe) : "-");
    bool any = false;
    for (const std::string& name : names) {
      const auto it = row.metrics.find(name);
      any = any || it != row.metrics.end();
      cells.push_back(it == row.metrics.end() ? "-" : format_value(it->second));
    }
    if (any) table.rows.push_back(std::move(cells));
  }
  section.tables.push_back(std::move(table));
  return section;
}

}  // namespace

ReportSection cost_section(const std::vector<ResultRow>& rows) {
  ReportSection section = metric_table(rows, "Cost", true, [](const std::string& name) {
    const std::string bare = name.substr(0, name.find('['));
    return bare == "nfe_compression" || bare == "gflop_per_image" || bare == "training_tflop" || bare == "latency_ms" ||
           name == "speed_up[teacher]";
  });
  if (!section.tables.empty())
    section.tables[0].note =
        "NFE: evaluations of the network an image, guidance counts twice. GFLOP of those evaluations; text encoder and decoder, which "
        "run once, are not counted. Training: forward and backward of the runs listed, TFLOP. Latency: median of a call.";
  return section;
}

ReportSection in_loop_section(const std::vector<ResultRow>& rows) {
  ReportSection section = metric_table(rows, "[in-loop] The discriminator's own features", false,
                                       [](const std::string& name) { return is_in_loop_metric(name); });
  if (!section.tables.empty())
    section.paragraphs = {
        "Distances in the features that a generator was trained against. They are no judgement of it: the judges above share neither "
        "weights nor objective with that network."};
  return section;
}

}  // namespace fewstep::eval
