#include "src/models/kv_cache.h"

#include "src/base/error.h"
#include "src/models/llama.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep::models {

KvCache::KvCache(const LlamaConfig& config, int64_t batch, int64_t capacity, at::Device device, at::ScalarType dtype) {
  const auto options = at::TensorOptions().device(device).dtype(dtype);
  for (int64_t i = 0; i < config.num_hidden_layers; ++i) {
    keys.push_back(at::empty({batch, config.kv_heads(), capacity, config.head_size()}, options));
    values.push_back(at::empty_like(keys.back()));
  }
}

int64_t KvCache::batch() const { return keys.empty() ? 0 : keys.front().size(0); }
int64_t KvCache::capacity() const { return keys.empty() ? 0 : keys.front().size(2); }

void KvCache::truncate(int64_t new_length) {
  FEW_CHECK(new_length >= 0 && new_length <= length, "cache of length {} cannot be cut to {}", length, new_length);
  length = new_length;
}

void KvCache::select(const Tensor& rows) {
  const NoGrad no_grad;
  for (auto* side : {&keys, &values})
    for (Tensor& t : *side) {  // only the filled part is copied
      auto shape = t.sizes().vec();
      shape[0] = rows.size(0);
      Tensor chosen = at::empty(shape, t.options());
      if (length > 0) chosen.narrow(2, 0, length).copy_(t.narrow(2, 0, length).index_select(0, rows));
      t = chosen;
    }
}

}  // namespace fewstep::models
