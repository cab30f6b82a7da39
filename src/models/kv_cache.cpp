#include "src/models/kv_cache.h"

#include <ATen/Parallel.h>

#include <cstring>

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

void KvCache::write(const Tensor& layer, const Tensor& places, const Tensor& x) {
  if (!x.is_cpu() || x.stride(3) != 1) {
    layer.flatten(0, 2).index_copy_(0, places.flatten(), x.flatten(0, 2));
    return;
  }
  // index_copy_ would gather x first and then takes ten times as long as the copy of the rows.
  const int64_t H = x.size(1), L = x.size(2), size = x.element_size(), bytes = x.size(3) * size, limit = layer.numel() / x.size(3);
  const Tensor index = places.contiguous();
  const int64_t* place = index.const_data_ptr<int64_t>();
  const auto* from = static_cast<const char*>(x.const_data_ptr());
  auto* to = static_cast<char*>(layer.mutable_data_ptr());
  at::parallel_for(0, x.size(0) * H, std::max<int64_t>(1, 65536 / (L * x.size(3))), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t l = 0; l < L; ++l) {
        const int64_t row = place[i * L + l];
        FEW_CHECK(row >= 0 && row < limit, "place {} of a KV cache that has {}", row, limit);
        const char* token = from + (i / H * x.stride(0) + i % H * x.stride(1) + l * x.stride(2)) * size;
        std::memcpy(to + row * bytes, token, static_cast<size_t>(bytes));
      }
  });
}

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
