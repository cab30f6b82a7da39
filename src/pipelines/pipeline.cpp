#include "src/pipelines/pipeline.h"

#include <nlohmann/json.hpp>
#include <numeric>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/json.h"
#include "src/base/table.h"
#include "src/base/text.h"
#include "src/config/config.h"
#include "src/io/checkpoint.h"
#include "src/pipelines/autoregressive_pipeline.h"
#include "src/tensor/ops.h"

namespace fewstep::pipelines {
namespace fs = std::filesystem;
namespace {

struct PipelineKind {
  std::string_view name;  // _class_name of model_index.json
  std::unique_ptr<Pipeline> (*load)(const fs::path& folder, at::Device device);
};

const PipelineKind kPipelines[] = {
    {"AutoregressivePipeline",
     [](const fs::path& folder, at::Device device) -> std::unique_ptr<Pipeline> {
       return std::make_unique<AutoregressivePipeline>(folder, device);
     }},
};

}  // namespace

void describe(config::Visitor& v, GenerateOptions& c) {
  v.field("guidance", c.guidance, "classifier-free guidance scale; 1: conditional only", config::kNonNegative);
  v.field("temperature", c.temperature, "of the softmax; 0: greedy", config::kNonNegative);
  v.field("top_k", c.top_k, "only the k most probable codes; 0: all", config::kNonNegative);
  v.field("top_p", c.top_p, "only the smallest set of codes that reaches this probability; 1: all", config::kUnit);
  v.field("batch_size", c.batch_size, "images decoded together", config::kAtLeastOne);
  static constexpr config::Choice kTimestepTokens[] = {{"checkpoint", 0}, {"none", 1}, {"shared_suffix", 2}, {"per_slot", 3}};
  describe(v, c.decoder);
  v.field("timestep_tokens", c.timestep_tokens, "sjd2: refused unless it is the checkpoint's", kTimestepTokens);
}

decoding::DecoderOptions GenerateOptions::decoder_options() const {
  decoding::DecoderOptions options = decoder;
  options.sampling = {guidance, temperature, top_k, top_p};
  return options;
}

std::string changed_options(GenerateOptions options) {
  GenerateOptions defaults;
  const std::vector<std::string> as_is = split(config::to_yaml(defaults), '\n');
  std::string out;
  for (std::string line : split(config::to_yaml(options), '\n')) {
    if (std::find(as_is.begin(), as_is.end(), line) != as_is.end()) continue;
    const size_t colon = line.find(": ");
    if (colon == std::string::npos) continue;
    out += (out.empty() ? "" : " ") + line.replace(colon, 2, "=");
  }
  return out;
}

Generated Pipeline::generate(const std::vector<std::string>& prompts, uint64_t seed, int64_t first_index,
                             const GenerateOptions& options) {
  std::vector<int64_t> ids(prompts.size());
  std::iota(ids.begin(), ids.end(), first_index);
  return generate(prompts, seed, ids, options);
}
Json Pipeline::decoding_report(const std::vector<Generated>&, const GenerateOptions&) const { return nullptr; }
std::vector<Strip> Pipeline::strips(const std::vector<std::string>&, uint64_t, const GenerateOptions&, int64_t) {
  return {};
}

fs::path find_model(const fs::path& folder) {
  if (!fs::exists(folder)) fail<DataError>("{}: no such folder", folder.string());
  for (const fs::path& candidate : {folder, folder / "model"})
    if (fs::exists(candidate / "model_index.json")) return candidate;
  if (const auto checkpoint = io::find_checkpoint(folder)) return *checkpoint / "model";
  fail<DataError>("{}: neither a model folder (model_index.json) nor a run with a whole checkpoint", folder.string());
}

std::unique_ptr<Pipeline> load(const fs::path& folder, at::Device device) {
  const fs::path model = find_model(folder);
  const Json index = read_json(model / "model_index.json");
  const std::string name = index.value("_class_name", "");
  const std::string where = (model / "model_index.json").string() + ": pipeline";
  return find_entry(std::span<const PipelineKind>(kPipelines), name, where).load(model, device);
}

}  // namespace fewstep::pipelines
