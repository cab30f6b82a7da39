#include "src/pipelines/diffusion_options.h"

namespace fewstep::pipelines {
namespace {

std::vector<config::Choice> with_checkpoint(std::span<const config::Choice> choices) {
  std::vector<config::Choice> all = {{"checkpoint", -1}};
  all.insert(all.end(), choices.begin(), choices.end());
  return all;
}

void describe_sampling(config::Visitor& v, DiffusionOptions& c) {
  static const std::vector<config::Choice> samplers = with_checkpoint(diffusion::sampler_choices()),
                                           spacings = with_checkpoint(diffusion::spacing_choices());
  v.field("sampler", c.sampler, "diffusion: how x_t becomes x_{t-1}; checkpoint: as its scheduler says", samplers);
  v.field("sampling_steps", c.steps, "diffusion: steps from noise to image (--steps)", config::kAtLeastOne);
  v.field("spacing", c.spacing, "diffusion: where the steps lie on the training axis", spacings);
  v.field("timesteps", c.timesteps, "diffusion: exactly these, falling, instead of sampling_steps and spacing",
          config::kNonNegative);
  v.field("eta", c.eta, "diffusion, sampler ddim: noise that is drawn afresh in every step, 0 none ... 1 ancestral",
          config::kNonNegative);
}

void describe_guidance(config::Visitor& v, DiffusionOptions& c) {
  static constexpr config::Choice kScopes[] = {{"text", static_cast<int>(NullScope::text)},
                                               {"all", static_cast<int>(NullScope::all)}};
  v.field("guidance_rescale", c.guidance_rescale,
          "diffusion: share of the guided prediction that gets the conditional one's deviation", config::kUnit);
  v.field("guidance_from", c.guidance_from, "diffusion: guidance only at noise levels t / T from here ...",
          config::kUnit);
  v.field("guidance_to", c.guidance_to, "... to here; outside, the network is called once a step", config::kUnit);
  v.check(c.guidance_from <= c.guidance_to, "guidance_from", "must not be above guidance_to");
  v.field("unconditional", c.unconditional,
          "diffusion: what guidance's other branch lacks: the text or class (sizes stay, as SDXL), or all conditions",
          kScopes);
  v.field("negative_prompt", c.negative_prompt,
          "diffusion: prompt of guidance's other branch; empty: the model's null");
}

void describe_picture(config::Visitor& v, DiffusionOptions& c) {
  v.field("height", c.height, "diffusion: of the images, pixels; 0: the model's", config::kNonNegative);
  v.field("width", c.width, "see height", config::kNonNegative);
  v.field("original_size", c.original_size,
          "diffusion: [height, width] the network is told as the original's; []: those of the images",
          config::kAtLeastOne);
  v.field("crop", c.crop, "diffusion: [top, left] of the crop the network is told; []: [0, 0]", config::kNonNegative);
  v.field("target_size", c.target_size,
          "diffusion: [height, width] the network is told as the target; []: those of the images", config::kAtLeastOne);
  for (const auto& [key, pair] :
       {std::pair{"original_size", &c.original_size}, {"crop", &c.crop}, {"target_size", &c.target_size}})
    v.check(pair->empty() || pair->size() == 2, key, "two numbers are expected, as [512, 768]");
  v.field("aesthetic", c.aesthetic, "diffusion: score the network is told; 0: the model's (6)", config::kNonNegative);
  v.field("negative_aesthetic", c.negative_aesthetic,
          "diffusion: score of guidance's other branch; 0: the model's (2.5)", config::kNonNegative);
}

}  // namespace

void describe(config::Visitor& v, DiffusionOptions& c) {
  describe_sampling(v, c);
  describe_guidance(v, c);
  describe_picture(v, c);
  v.field("init_image", c.init_image,
          "diffusion: image file to start from (--init-image), resized and cropped to the images' size");
  v.field("strength", c.strength,
          "diffusion: how far init_image is noised, as a share of the training timesteps, in (0, 1]", {0.001, 1});
  v.field("refiner", c.refiner, "diffusion: model that makes the last steps (--refiner), on the same latents");
  v.field("handover", c.handover,
          "diffusion: share of the training timesteps that is denoised before the refiner takes over (diffusers: "
          "denoising_end)",
          {0.001, 1});
  v.field("lora", c.lora,
          "diffusion: LoRA laid over the network: a file of PEFT's, kohya's or sgm's names, a folder with one (and its "
          "scheduler), or a run with an adapter");
  v.field("lora_scale", c.lora_scale, "diffusion: strength of lora, 1: as it was trained");
  v.check(c.lora_scale == 1 || !c.lora.empty(), "lora_scale", "is the strength of lora: give that, too");
}

diffusion::SamplingConfig DiffusionOptions::sampling(const diffusion::SamplingConfig& checkpoint) const {
  diffusion::SamplingConfig out = checkpoint;
  out.steps = steps, out.eta = eta;
  if (sampler != SamplerChoice::checkpoint) out.sampler = static_cast<diffusion::SamplerKind>(sampler);
  if (spacing != SpacingChoice::checkpoint) out.spacing = static_cast<diffusion::Spacing>(spacing);
  if (!timesteps.empty()) out.timesteps = timesteps;
  return out;
}

}  // namespace fewstep::pipelines
