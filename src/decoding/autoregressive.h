// Autoregressive decoding: one image token a pass, KV-cached and batched. A pure function of (model, prompts, options, seed).
#pragma once
#include <cstdint>

#include "src/models/llama.h"
#include "src/models/sequence_layout.h"
#include "src/tensor/tensor.h"

namespace fewstep::decoding {

struct SamplingOptions {
  double guidance = 1.0;     // l = u + s (c - u) on raw logits; 1: conditional rows only
  double temperature = 1.0;  // 0: greedy
  int64_t top_k = 0;         // logits >= the k-th largest stay (ties are kept); 0: all
  double top_p = 1.0;        // the smallest set of largest probabilities that reaches p; 1: all
};

// Probabilities float32 [B, K] of the image codes from logits [B, V], in this order: only image ids, temperature, top-k,
// softmax in float32, top-p.
Tensor code_probabilities(const Tensor& logits, const models::SequenceLayout& layout, const SamplingOptions& options);

// The code of each row by inversion of the cumulative distribution at `uniforms` [B] in [0, 1).
Tensor draw(const Tensor& probabilities, const Tensor& uniforms);

struct Decoded {
  Tensor codes;         // int64 [B, h w]
  int64_t passes = 0;   // forward passes, the prompt's included
};
// prompts: int64 [B, P] of layout.prompt(). Row i uses the uniforms keyed by (seed, ids[i], position): independent of batch
// and order. `ids`: int64 [B].
Decoded sample_autoregressive(const models::LlamaForCausalLM& model, const models::SequenceLayout& layout,
                              const Tensor& prompts, const Tensor& ids, uint64_t seed, const SamplingOptions& options);

}  // namespace fewstep::decoding
