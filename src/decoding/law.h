// The law p of one image token under an autoregressive model (guidance, temperature, top-k, top-p), and draws from laws.
// Everything is row by row over the last dimension: leading dimensions are free, rows never influence each other.
#pragma once
#include <cstdint>

#include "src/tensor/tensor.h"

namespace fewstep::decoding {

struct SamplingOptions {
  double guidance = 1.0;     // l = u + s (c - u) on raw logits; 1: conditional rows only
  double temperature = 1.0;  // 0: greedy
  int64_t top_k = 0;         // logits >= the k-th largest stay (ties are kept); 0: all
  double top_p = 1.0;        // the smallest set of largest probabilities that reaches p; 1: all
};

// Laws of a model with this table are kept in float32, or float64 if the model is in it.
inline at::ScalarType law_type(const Tensor& table) { return table.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

// Guided code logits [..., K] -> probabilities [..., K] in float32 (float64 if given), in this order: temperature, top-k,
// softmax, top-p.
Tensor code_law(const Tensor& logits, const SamplingOptions& options);

// A code per row by inversion of the cumulative distribution at `uniforms` [...] in [0, 1). `weights` [..., K] need not sum
// to one, but to something positive.
Tensor draw(const Tensor& weights, const Tensor& uniforms);

// What a rejected draft x ~ q is replaced by, so that the result is exactly ~ p (Leviathan et al. 2023, arXiv 2211.17192):
// max(p - q, 0), not normalised; p itself where nothing is left.
Tensor residual(const Tensor& p, const Tensor& q);

// argmax log p + g: ~ p for Gumbel noise g [..., K], and the same code whenever p and g are the same. Given e^g, as
// argmax p e^g: no logarithm of every probability (that of a zero is slow), and fewer roundings.
Tensor gumbel_argmax(const Tensor& p, const Tensor& exp_g);
// e^g = -1 / log u, finite for u in [0, 1) of 24 bits; float64.
Tensor exp_gumbel(const Tensor& uniforms);

// Entropy in nats, [..., K] -> [...].
Tensor entropy(const Tensor& p);

}  // namespace fewstep::decoding
