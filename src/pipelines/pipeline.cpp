#include "src/pipelines/pipeline.h"

#include <nlohmann/json.hpp>
#include <numeric>

#include "src/base/error.h"
#include "src/base/json.h"
#include "src/base/table.h"
#include "src/base/text.h"
#include "src/config/config.h"
#include "src/models/json_fields.h"
#include "src/models/model_folder.h"
#include "src/pipelines/autoregressive_pipeline.h"
#include "src/pipelines/diffusion_pipeline.h"
#include "src/tensor/ops.h"

namespace fewstep::pipelines {
namespace fs = std::filesystem;
namespace {

template <class T>
std::unique_ptr<Pipeline> load_pipeline(const fs::path& folder, at::Device device) {
  return std::make_unique<T>(folder, device);
}

struct PipelineKind {
  std::string_view name;  // _class_name of model_index.json
  std::unique_ptr<Pipeline> (*load)(const fs::path& folder, at::Device device);
  std::string_view steps_key;
};

constexpr PipelineKind kPipelines[] = {
    {"AutoregressivePipeline", load_pipeline<AutoregressivePipeline>, "steps"},
    {"FewstepDiffusionPipeline", load_pipeline<DiffusionPipeline>, "sampling_steps"},
    {"StableDiffusionXLPipeline", load_pipeline<DiffusionPipeline>, "sampling_steps"},
    {"StableDiffusionXLImg2ImgPipeline", load_pipeline<DiffusionPipeline>, "sampling_steps"},  // the refiner
    {"StableDiffusionPipeline", load_pipeline<DiffusionPipeline>, "sampling_steps"},
};

const PipelineKind& kind_of(const fs::path& model) {
  const fs::path path = model / "model_index.json";
  const Json index = read_json(path);
  const std::string name = models::JsonDataFields(index, path.string()).value("_class_name", "");
  return find_entry(std::span<const PipelineKind>(kPipelines), name, path.string() + ": pipeline");
}

// The lines of a config that are not those of the defaults, as "key=value".
std::vector<std::string> changed_lines(GenerateOptions options) {
  GenerateOptions defaults;
  const std::vector<std::string> as_is = split(config::to_yaml(defaults), '\n');
  std::vector<std::string> out;
  for (std::string line : split(config::to_yaml(options), '\n')) {
    if (std::find(as_is.begin(), as_is.end(), line) != as_is.end()) continue;
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) out.push_back(line.replace(colon, 2, "="));
  }
  return out;
}

void refuse(const GenerateOptions& changed, std::string_view model, std::string_view remedy) {
  std::string keys;
  for (const std::string& line : changed_lines(changed)) keys += (keys.empty() ? "" : ", ") + line.substr(0, line.find('='));
  if (!keys.empty()) fail<ConfigError>("{}: means nothing to {}; {}", keys, model, remedy);
}

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
  describe(v, c.diffusion);
}

decoding::DecoderOptions GenerateOptions::decoder_options() const {
  decoding::DecoderOptions options = decoder;
  options.sampling = {guidance, temperature, top_k, top_p};
  return options;
}

std::string changed_options(GenerateOptions options) {
  std::string out;
  for (const std::string& line : changed_lines(std::move(options))) out += (out.empty() ? "" : " ") + line;
  return out;
}

void refuse_autoregressive_keys(const GenerateOptions& options, std::string_view model) {
  GenerateOptions own = options;  // what both kinds take is put back to its default
  const GenerateOptions defaults;
  own.guidance = defaults.guidance, own.batch_size = defaults.batch_size, own.diffusion = {};
  refuse(own, model, "the steps of a diffusion model are sampling_steps, its sampler is sampler (fewstep config explain sample)");
}

void refuse_diffusion_keys(const GenerateOptions& options, std::string_view model) {
  GenerateOptions own;
  own.diffusion = options.diffusion;
  refuse(own, model, "these belong to diffusion models (fewstep config explain sample)");
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

fs::path find_model(const fs::path& folder) { return models::as_model_folder(folder); }

std::unique_ptr<Pipeline> load(const fs::path& folder, at::Device device) {
  const fs::path model = find_model(folder);
  return kind_of(model).load(model, device);
}

std::string_view steps_key(const fs::path& folder) { return kind_of(find_model(folder)).steps_key; }

}  // namespace fewstep::pipelines
