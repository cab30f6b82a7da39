// Stateless randomness: every draw is keyed by (seed, stream, step, sample id). No generator outlives a call, so resume
// needs no state and results depend neither on ranks nor on workers nor on how a batch is split.
#pragma once
#include <cstdint>
#include <span>

#include "src/tensor/tensor.h"

namespace fewstep {

// Adding a draw to one stream does not shift another. Append only: the numbers are part of every result.
// posterior: draws from an autoencoder's posterior. rung, rollout, score, critic, discriminator: of a distillation step.
enum class Stream : uint64_t {
  data = 1, init, noise, timestep, dropout, augment, sampling, eval, codebook, mix, posterior, rung, rollout, score, critic, discriminator
};

uint64_t stream_key(uint64_t seed, Stream stream, int64_t step, int64_t id = 0);
at::Generator generator_for(uint64_t seed, Stream stream, int64_t step, int64_t id = 0);  // CPU generator

// [N, columns] float32 in [0, 1): row i depends on ids[i], never on N or the other rows. `ids`: int64 [N], CPU.
Tensor uniform_by_id(const Tensor& ids, int64_t columns, uint64_t seed, Stream stream, int64_t step);
// The same from column first[i] of row i on: what longer rows hold there. `first`: int64 [N], CPU.
Tensor uniform_by_id(const Tensor& ids, const Tensor& first, int64_t columns, uint64_t seed, Stream stream, int64_t step);
// [N, shape...] standard normal float32, same contract (Box-Muller over the same counters).
Tensor normal_by_id(const Tensor& ids, at::IntArrayRef shape, uint64_t seed, Stream stream, int64_t step);

}  // namespace fewstep
