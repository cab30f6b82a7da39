#include "src/pipelines/verify_pipeline.h"

#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/json.h"
#include "src/io/safetensors.h"
#include "src/models/json_fields.h"
#include "src/pipelines/conditioner_sdxl.h"
#include "src/pipelines/diffusion_model.h"
#include "src/pipelines/draw_latents.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep::pipelines {
namespace fs = std::filesystem;
namespace {

struct PipelineCase {
  TensorMap inputs, expected;
  double guidance = 1;
  int64_t steps = 0;
};

PipelineCase read_pipeline_case(const fs::path& folder) {
  PipelineCase out;
  for (auto& [name, tensor] : io::Safetensors(folder / "io.safetensors").all()) {
    if (name.starts_with("input.")) out.inputs[name.substr(6)] = tensor;
    if (name.starts_with("expected.")) out.expected[name.substr(9)] = tensor;
  }
  const fs::path path = folder / "case.json";
  const Json json = read_json(path);
  const Json* given = models::JsonDataFields(json, path.string()).find("args");
  if (given == nullptr) fail<DataError>("{}: args is missing", path.string());
  const models::JsonDataFields arguments(*given, path.string() + ": args");
  out.steps = arguments.at<int64_t>("num_inference_steps");
  out.guidance = arguments.value("guidance_scale", 1.0);
  return out;
}

const Tensor& pipeline_input(const PipelineCase& golden, const std::string& name, const fs::path& folder) {
  const auto it = golden.inputs.find(name);
  if (it == golden.inputs.end())
    fail<DataError>("{}: there is no 'input.{}'", (folder / "io.safetensors").string(), name);
  return it->second;
}

// Latents of the scheduler's own scale: diffusers' Euler and Heun work on x0 + (sigma / alpha) eps.
bool works_on_ratios(diffusion::SamplerKind kind) {
  using diffusion::SamplerKind;
  return kind == SamplerKind::euler || kind == SamplerKind::euler_ancestral || kind == SamplerKind::heun;
}

TensorMap run_pipeline(const DiffusionModel& model, const PipelineCase& golden, const fs::path& folder) {
  const auto* conditioner = dynamic_cast<const SdxlConditioner*>(model.conditioner.get());
  if (!conditioner) fail<ConfigError>("{}: only pipelines with CLIP text encoders are verified", folder.string());
  std::vector<Tensor> ids;
  for (const char* name : {"input_ids_cond_then_uncond", "input_ids_2_cond_then_uncond"})
    if (golden.inputs.contains(name)) ids.push_back(golden.inputs.at(name));
  TensorMap produced;
  ConditionInput input;
  std::tie(input.context, input.pooled) = conditioner->encode_ids(ids);
  produced["prompt_embeds"] = input.context, produced["pooled"] = input.pooled;

  const Tensor& noise = pipeline_input(golden, "initial_noise", folder);
  const int64_t B = noise.size(0);
  models::UNetConditions both;
  both.context = input.context, both.pooled = input.pooled;
  both.numbers = pipeline_input(golden, "time_ids", folder).to(at::kFloat);
  DrawRequest r;
  r.conditional = narrow(both, 0, B);
  if (golden.guidance != 1) r.unconditional = narrow(both, B, B);
  r.guidance.scale = golden.guidance;
  r.sampling = model.sampling, r.sampling.steps = golden.steps;
  r.plan = diffusion::make_plan(model.schedule, r.sampling);
  r.ids = at::arange(B);
  r.start = noise * diffusion::initial_scale(r.plan);
  std::vector<Tensor> states;
  const DrawnLatents drawn =
      draw_latents(*model.unet, model.schedule, model.prediction, r, [&](int64_t step, const Tensor& x) {
        states.push_back(works_on_ratios(r.sampling.sampler) ? x / r.plan.alphas[static_cast<size_t>(step) + 1] : x);
      });
  produced["latents_after_each_step"] = at::cat(states);
  produced["image"] = model.latent_space->decode(drawn.latents);
  return produced;
}

}  // namespace

models::VerifyReport verify_pipeline(const fs::path& folder, const models::VerifyOptions& options) {
  const NoGrad no_grad;
  const PipelineCase golden = read_pipeline_case(folder);
  const DiffusionModel model = load_diffusion_model(folder);
  const TensorMap produced = run_pipeline(model, golden, folder);
  models::VerifyReport report;
  for (const auto& [name, expected] : golden.expected) {
    const auto it = produced.find(name);
    models::VerifyLine line{.name = name, .verdict = models::Verdict::not_produced};
    if (it != produced.end() && it->second.defined()) line = models::compare(name, expected, it->second, options.limit);
    report.passed = report.passed && line.verdict != models::Verdict::fail &&
                    !(options.all && line.verdict == models::Verdict::not_produced);
    report.lines.push_back(line);
  }
  return report;
}

}  // namespace fewstep::pipelines
