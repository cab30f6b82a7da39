#include "src/pipelines/pipeline.h"

#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/json.h"
#include "src/base/table.h"
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
  v.field("decoder", c.decoder, "ar");
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
  return find_entry(std::span<const PipelineKind>(kPipelines), name, (model / "model_index.json").string() + ": pipeline").load(model, device);
}

}  // namespace fewstep::pipelines
