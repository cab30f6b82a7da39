// `fewstep model verify` for folders with scheduler_config.json: step traces of diffusers' schedulers.
#pragma once
#include <filesystem>

#include "src/models/verify.h"

namespace fewstep::diffusion {

// case.json: args (num_inference_steps, mu, original_inference_steps, timesteps, ...) and step_kwargs (eta). io.safetensors: input.initial_sample,
// input.model_outputs [calls, ...], input.step_noises_in_call_order, input.add_noise_{x0,eps,timesteps}; expected.timesteps,
// sigmas, alphas_cumprod, samples_after_each_step, scaled_model_inputs, add_noise, velocity.
models::VerifyReport verify_scheduler(const std::filesystem::path& folder, const models::VerifyOptions& options = {});

}  // namespace fewstep::diffusion
