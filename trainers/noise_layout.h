// Next-clean-token prediction (SJD2, arXiv 2510.08994): which image tokens are noised how much, and what the transformer then
// sees. Pure functions: keyed draws -> a plan on the CPU -> embeddings, positions and attention mask.
//
// The image token i (0 ... N - 1) stands at position P + i behind the prompt; the row of input i predicts token i + 1, the last
// prompt row predicts token 0. Inputs are the prompt, always clean, and n = N - 1 image tokens.
//   segments    M ~ U{2 ... segments} parts with uniform cut points; the first is clean, times rise from part to part.
//   window      clean tokens before a random s, then up to `window` tokens with a ramp of levels; nothing behind them.
//   two_stream  the clean sequence, and beside it a noisy copy of the image tokens in windows of `window` tokens (random phase,
//               each with its ramp). A noisy token sees the clean tokens before its window and the noisy ones of its window.
// The ramp is the state of a decoder with K levels that accepts m tokens a pass: the rightmost m slots are at level K, the next m
// at K - 1 ..., and none is below K - p after the first p passes, since all slots start together at level K:
//   k(j) = max(K - floor((W - 1 - j) / m), K - p, 1)   for slot j of the window that starts at token s,
// with m ~ U(1/2, 3/2) W / K, at least 1, and p = ceil(s / m^v), v ~ U(0, 1): behind noise a decoder accepts one token a pass at
// first (gated), or m at once. K is `levels_count`, or `segments` when that is 0.
// Times are levels of the noise config (in segments drawn from all K with replacement, then sorted) or, with levels_count 0,
// continuous: in segments each a draw of its own, on ramps K levels that one draw a sample shifts together.
#pragma once
#include <array>
#include <cstdint>

#include "src/config/visitor.h"
#include "src/models/embedding_noise.h"
#include "src/tensor/tensor.h"

namespace fewstep {

enum class NoiseLayout { segments, window, two_stream };

struct NoiseLayoutConfig {
  NoiseLayout layout = NoiseLayout::segments;
  int64_t segments = 8;       // most parts of a sequence, the clean one included
  int64_t window = 64;        // slots
  int64_t levels_count = 0;   // K; 0: continuous times
  double clean_weight = 1.0;  // of the loss rows whose whole context is clean, against 1 of the noisy ones
};
void describe_fields(config::Visitor& v, NoiseLayoutConfig& c);  // at the level of the caller's own keys

// The keys of the draws: row r depends on ids[r], seed and step only.
struct NoiseKey {
  Tensor ids;  // int64 [B], CPU
  uint64_t seed = 0;
  int64_t step = 0;
};

// Everything on the CPU.
struct NoisePlan {
  NoiseLayout layout = NoiseLayout::segments;
  Tensor group;    // int64 [B, n]: the input's noise level among the sample's G, -1: clean
  Tensor time;     // float64 [B, G], rising
  Tensor height;   // float64 [B, G]: where that time is between the lowest (0) and the highest level (1)
  Tensor noised;   // bool [B, n]: group >= 0, time > 0 and no structural token (those are known, and stay clean)
  Tensor first;    // int64 [B, n], two_stream: the first token of the input's window
  // Of the R rows that predict: N of the main stream, then n of the noisy one (two_stream).
  Tensor row_height;  // float64 [B, R]: that of the input's level; -1: all the row sees is clean; kUnused: no loss
  Tensor row_weight;  // float64 [B, R] of the loss
  static constexpr double kUnused = -2;
};
// structural: bool [N], tokens that are known (row ends).
NoisePlan draw_noise_plan(const NoiseLayoutConfig& config, const models::EmbeddingNoiseConfig& noise, const Tensor& structural,
                          const NoiseKey& key);
// The sum of loss weights of one sample: exact for two_stream, N in segments, the mean over s in window. A fixed number, so that
// the loss is a sum over a global count whatever the draws.
double loss_rows(const NoiseLayoutConfig& config, int64_t image_length);

// What the transformer sees. Columns: prompt | image inputs | noisy copy (two_stream) | timestep tokens.
//   shared_suffix: one timestep token a level of the sample, at position 0, seen by the noisy tokens of that level.
//   per_slot: one an input that may be noised, at its position, seen by it alone.
// Timestep tokens see themselves only, so their keys depend on nothing but time and position: a decoder may keep them.
struct NoisyInput {
  Tensor embeds;         // [B, L, d]
  Tensor positions;      // int64 [L]
  Tensor mask;           // bool [B, 1, L, L]; undefined: causal
  Tensor rows, targets;  // int64 [R]: output row rows[r] predicts image token targets[r]
};
// prompts [B, P, d] and images [B, n, d]: clean embeddings; eps [B, n, d]: standard normal.
NoisyInput arrange(const NoisePlan& plan, const models::EmbeddingNoise& noise, const Tensor& prompts, const Tensor& images,
                   const Tensor& eps);

// Sums of the loss [B, R] by level: the clean rows, then the noisy ones by quarter of the height.
constexpr std::array<const char*, 5> kLevelNames = {"loss_clean", "loss_t1", "loss_t2", "loss_t3", "loss_t4"};
struct LossByLevel {
  Tensor sums;                  // float64 [5], on the loss's device
  std::array<double, 5> counts{};
};
LossByLevel by_level(const NoisePlan& plan, const Tensor& loss);

}  // namespace fewstep
