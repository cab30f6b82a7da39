// The random numbers of a DMD2 iteration, each keyed by (seed, stream, iteration, sample id): they depend neither on ranks nor on
// micro-batches, and a resumed run draws them again.
//   rung     one number for all samples and ranks (id 0): a rollout has as many network calls everywhere
//   rollout  a row a sample: x_T, then the noise of each of the sampler's steps
//   score, critic   a row a sample: noise, and behind it the uniform number that t is made of
#pragma once
#include <cstdint>

#include "src/diffusion/distribution_matching.h"
#include "src/tensor/rng.h"

namespace fewstep {

struct DrawKey {
  Tensor ids = {};  // int64 [B], CPU
  uint64_t seed = 0;
  int64_t step = 0;
};

int64_t draw_rung(const diffusion::StudentSchedule& schedule, uint64_t seed, int64_t step);

// [B, slots, C, h, w] for latents of `shape` [C, h, w]: slot 0 is x_T and slot 1 + j the noise of the sampler's step j. More slots
// do not change the first ones.
Tensor draw_rollout(const DrawKey& key, at::IntArrayRef shape, int64_t slots, const at::TensorOptions& options);

// x0 noised to timesteps of `range`, a sample each.
struct NoisedX0 {
  Tensor x_t, noise;        // [B, C, h, w]
  Tensor t, alpha, sigma;   // [B]
};
NoisedX0 draw_noised(const DrawKey& key, Stream stream, const diffusion::ScoreRange& range, const diffusion::Schedule& schedule,
                     const Tensor& x0);

}  // namespace fewstep
