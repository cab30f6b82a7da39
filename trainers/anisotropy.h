// The embedding table in other coordinates (ablation of normalised noise): each dimension scaled and shifted, and the inverse
// map put between embedding and residual stream (LlamaConfig::embed_affine). The network computes the same function of clean
// tokens; noise added to the rows of the table, however, now meets an anisotropic, shifted table.
#pragma once
#include <cstdint>
#include <memory>

#include "src/config/visitor.h"
#include "src/models/embedding_noise.h"
#include "src/models/llama.h"

namespace fewstep {

struct AnisotropyConfig {
  double spread = 1.0;  // scales a_j are log-uniform in [1 / spread, spread]
  double shift = 0.0;   // b_j ~ N(0, (shift a_j s_j)^2), s_j: deviation of the table in dimension j. So in new deviations
  int64_t seed = 0;
  bool on() const { return spread != 1 || shift != 0; }
};
void describe(config::Visitor& v, AnisotropyConfig& c);

// The same network with table' = a table + b and, in front of the blocks, x = (table'[id] - b) / a (an affine map that is there
// already is composed with it). On the CPU. Error when the logits of a few random sequences move by more than 1e-4 of their rms;
// ConfigError for tied embeddings.
std::unique_ptr<models::LlamaForCausalLM> reparameterise(const models::LlamaForCausalLM& model, const AnisotropyConfig& config);

// max |a - b| / rms of logits over a few random sequences.
double largest_logit_change(const models::LlamaForCausalLM& a, const models::LlamaForCausalLM& b);

// alpha s_j / (sigma deviation_j) over the dimensions j at t = 1/2, s_j: deviation of the image codes' rows of the table. What
// of a token a dimension still shows under noise; about 1 in all of them when normalised per dimension.
struct SignalToNoise {
  double min = 0, median = 0, max = 0;
};
SignalToNoise signal_to_noise(const models::EmbeddingNoise& noise, const Tensor& table, int64_t first_image_row);

}  // namespace fewstep
