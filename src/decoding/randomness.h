// Every draw of a decoder is keyed by (seed, sample, slot, pass, use): no state, no dependence on the batch.
#pragma once
#include <cstdint>
#include <vector>

#include "src/tensor/tensor.h"

namespace fewstep::decoding {

class DecoderRandomness {
 public:
  // ids int64 [B], CPU; values are made there and moved to `options`' device.
  DecoderRandomness(const Tensor& ids, uint64_t seed, int64_t slots, const at::TensorOptions& options);

  int64_t rows() const { return ids_.size(0); }
  // One uniform a slot, [B, N], the same in every pass.
  Tensor autoregressive() const;    // the draw of an AR decoder
  Tensor first_draft() const;       // what a new slot starts with
  // Of one pass: [B, 2 N + 2]: acceptance of slot i at i, its draw at N + 1 + i.
  Tensor of_pass(int64_t pass) const;
  // e^g of Gumbel noise g, float64 [B, count, K], of slots first[b] ... first[b] + count - 1: the same whenever it is asked for.
  // Made piece by piece: of all slots of a large image it would take more memory than the model's cache.
  Tensor gumbel(const std::vector<int64_t>& first, int64_t count, int64_t codes) const;
  Tensor gumbel(int64_t first, int64_t count, int64_t codes) const;  // the same slots of all rows
  Tensor normal(int64_t dims) const;      // float32 [B, N, d]: the pure noise a slot enters with
  void keep(const Tensor& rows);          // int64 [B'], CPU

 private:
  Tensor uniform(int64_t columns, int64_t use) const;
  Tensor ids_;
  uint64_t seed_;
  int64_t slots_;
  at::TensorOptions options_;
};

}  // namespace fewstep::decoding
