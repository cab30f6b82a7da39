// `fewstep model verify` for folders with model_index.json: a whole diffusion pipeline from token ids to pixels.
#pragma once
#include <filesystem>

#include "src/models/verify.h"

namespace fewstep::pipelines {

// case.json: args guidance_scale, num_inference_steps. io.safetensors: input.input_ids_cond_then_uncond and
// input.input_ids_2_cond_then_uncond int64 [2B, L] (refiners have one of them), input.time_ids float [2B, n],
// input.initial_noise [B, C, h, w]; expected.prompt_embeds, pooled, latents_after_each_step [steps B, C, h, w] (in the
// scheduler's own scale: of Euler x_t / alpha), image [B, 3, H, W]. Conditional rows first.
models::VerifyReport verify_pipeline(const std::filesystem::path& folder, const models::VerifyOptions& options = {});

}  // namespace fewstep::pipelines
