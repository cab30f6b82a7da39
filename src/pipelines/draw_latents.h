// The one loop from noise to latents: pipelines, training grids and `model verify` call it.
#pragma once
#include <cstdint>

#include "src/diffusion/prediction.h"
#include "src/diffusion/samplers.h"
#include "src/diffusion/sampling_plan.h"
#include "src/diffusion/schedule.h"
#include "src/models/unet2d.h"
#include "src/tensor/tensor.h"

namespace fewstep::pipelines {

// u + scale (c - u) between the noise levels t / T of `from` and `to`; outside, and with scale 1, the conditional
// prediction alone (Kynkaanniemi et al. 2024, arXiv 2404.07724). rescale: Lin et al. 2023, arXiv 2305.08891, sec. 3.4.
struct Guidance {
  double scale = 1, rescale = 0;
  double from = 0, to = 1;
};

struct DrawRequest {
  models::UNetConditions conditional = {}, unconditional = {};  // B rows each; unconditional is read with guidance only
  Guidance guidance = {};
  diffusion::SamplingPlan plan = {};
  diffusion::SamplingConfig sampling = {};
  Tensor ids = {};  // int64 [B], CPU
  uint64_t seed = 0;
  Tensor start = {};  // [B, C, h, w] at the plan's first noise level; undefined: noise of (seed, ids)
  int64_t channels = 0, height = 0, width = 0;  // of the latents, where `start` is undefined
  int64_t stage = 0;                            // models that go on with another one's latents draw other noise
};

struct DrawnLatents {
  Tensor latents = {};  // float32 [B, C, h, w]
  int64_t steps = 0;    // network calls of a sample, guidance counted once
  int64_t nfe = 0;      // guidance counted twice where it was in effect
};
// Row i depends on (seed, ids[i]) and its conditions, never on the rest of the batch (up to the rounding of products).
DrawnLatents draw_latents(const models::UNet2DConditionModel& unet, const diffusion::Schedule& schedule,
                          diffusion::Prediction prediction, const DrawRequest& request,
                          const diffusion::Observer& observe = {});

// [N, C, h, w] standard normal float32: row i of (seed, ids[i]).
Tensor initial_noise(const Tensor& ids, at::IntArrayRef shape, uint64_t seed);
// Conditions of rows [first, first + count) and of two batches one after the other.
models::UNetConditions narrow(const models::UNetConditions& c, int64_t first, int64_t count);
models::UNetConditions concatenate(const models::UNetConditions& a, const models::UNetConditions& b);
models::UNetConditions to_device(const models::UNetConditions& c, at::Device device);

}  // namespace fewstep::pipelines
