// Keys and values of past tokens, allocated once. Rows are independent, so decoders may rewind (rejected drafts), fork
// and drop rows without touching the model.
#pragma once
#include <cstdint>
#include <vector>

#include "src/tensor/tensor.h"

namespace fewstep::models {

struct LlamaConfig;

struct KvCache {
  std::vector<Tensor> keys, values;  // one per layer, [B, Hkv, capacity, D]; positions below `length` are filled
  int64_t length = 0;

  KvCache() = default;
  // Uninitialised storage on `device`; capacity = prompt + generated tokens.
  KvCache(const LlamaConfig& config, int64_t batch, int64_t capacity, at::Device device = at::kCPU,
          at::ScalarType dtype = at::kFloat);

  int64_t batch() const;
  int64_t capacity() const;
  void truncate(int64_t new_length);     // forget everything from there on: one assignment, nothing is moved
  // Row i becomes what row rows[i] was (int64 [B'], B' may differ): dropping finished rows, repeating prompts.
  void select(const Tensor& rows);
};

}  // namespace fewstep::models
