// Keys and values of past tokens, allocated once. Rows are independent, so decoders may rewind (rejected drafts), fork
// and drop rows without touching the model; with ForwardOptions::slots every row also has its own length.
#pragma once
#include <cstdint>
#include <vector>

#include "src/tensor/tensor.h"

namespace fewstep::models {

struct LlamaConfig;

struct KvCache {
  // One per layer, [B, Hkv, capacity, D]: what a head looks at lies in one piece. (With a token's heads side by side, attention
  // of a single query took twice as long from 500 tokens on.)
  std::vector<Tensor> keys, values;
  int64_t length = 0;                // positions below it are filled; not used by passes that give their own slots

  KvCache() = default;
  // Uninitialised storage on `device`; capacity = prompt + generated tokens.
  KvCache(const LlamaConfig& config, int64_t batch, int64_t capacity, at::Device device = at::kCPU,
          at::ScalarType dtype = at::kFloat);

  int64_t batch() const;
  int64_t capacity() const;
  // x [B, Hkv, L, D] to flat places (b Hkv + h) capacity + slot, int64 [B, Hkv, L], of a layer's keys or values.
  static void write(const Tensor& layer, const Tensor& places, const Tensor& x);
  void truncate(int64_t new_length);     // forget everything from there on: one assignment, nothing is moved
  // Row i becomes what row rows[i] was (int64 [B'], B' may differ): dropping finished rows, repeating prompts.
  void select(const Tensor& rows);
};

}  // namespace fewstep::models
