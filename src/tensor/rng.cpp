#include "src/tensor/rng.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <numbers>

#include "src/base/error.h"
#include "src/base/philox.h"
#include "src/tensor/ops.h"

namespace fewstep {
namespace {

using Block = std::array<uint32_t, 4>;

// Block `index` of the stream `key`.
Block block(uint64_t key, uint64_t index) {
  return philox4x32({static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), 0, 0},
                    {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)});
}

double unit(uint32_t low, uint32_t high) {  // [0, 1) with 53 bits
  return static_cast<double>(((static_cast<uint64_t>(high) << 32) | low) >> 11) * 0x1.0p-53;
}

void uniform_row(uint64_t key, int64_t first, float* out, int64_t n) {
  for (int64_t i = 0; i < n;) {
    const Block b = block(key, static_cast<uint64_t>((first + i) / 4));
    for (auto j = static_cast<size_t>((first + i) % 4); j < 4 && i < n; ++j, ++i)
      out[i] = static_cast<float>(b[j] >> 8) * 0x1.0p-24f;  // 24 bits: exact, below 1
  }
}

// Box and Muller (1958): two uniforms to two normals. In double, so that the tails reach 8.5 sigma.
void normal_row(uint64_t key, int64_t, float* out, int64_t n) {
  for (int64_t i = 0; i < n; i += 2) {
    const Block b = block(key, static_cast<uint64_t>(i / 2));
    const double radius = std::sqrt(-2.0 * std::log(1.0 - unit(b[0], b[1])));  // 1 - u is in (0, 1]
    const double angle = 2.0 * std::numbers::pi * unit(b[2], b[3]);
    out[i] = static_cast<float>(radius * std::cos(angle));
    if (i + 1 < n) out[i + 1] = static_cast<float>(radius * std::sin(angle));
  }
}

using RowFn = void (*)(uint64_t key, int64_t first, float* out, int64_t n);

void check_ids(const Tensor& ids) {
  if (ids.dim() != 1 || ids.scalar_type() != at::kLong || !ids.device().is_cpu())
    fail("sample ids must be int64 [N] on the CPU, got {} {}", c10::toString(ids.scalar_type()), ids.dim());
}

Tensor rows_by_id(const Tensor& ids, const Tensor& first, std::vector<int64_t> shape, RowFn fill,
                  const std::function<uint64_t(int64_t)>& key) {
  check_ids(ids);
  shape.insert(shape.begin(), ids.size(0));
  const Tensor out = at::empty(shape, at::kFloat), index = ids.contiguous(), begins = first.defined() ? first.contiguous() : Tensor();
  if (out.numel() == 0) return out;
  const int64_t rows = ids.size(0), columns = out.numel() / rows;
  const int64_t* id = index.const_data_ptr<int64_t>();
  const int64_t* start = begins.defined() ? begins.const_data_ptr<int64_t>() : nullptr;
  float* data = out.mutable_data_ptr<float>();
  // Threads only share out rows: no value depends on their number.
  at::parallel_for(0, rows, std::max<int64_t>(1, 8192 / columns), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) fill(key(id[i]), start ? start[i] : 0, data + i * columns, columns);
  });
  return out;
}

}  // namespace

uint64_t stream_key(uint64_t seed, Stream stream, int64_t step, int64_t id) {
  const uint64_t of_step = philox_u64(seed, static_cast<uint64_t>(stream), static_cast<uint64_t>(step));
  return philox_u64(of_step, static_cast<uint64_t>(id), 1);
}

at::Generator generator_for(uint64_t seed, Stream stream, int64_t step, int64_t id) {
  const uint64_t key = stream_key(seed, stream, step, id);
  at::Generator generator = at::detail::createCPUGenerator(key);
  // at::mt19937 keeps 32 bits of its seed only, and of a million streams a hundred would be twins: the whole
  // Mersenne state is drawn from the 64-bit key instead.
  at::mt19937_data_pod state{};
  state.seed_ = key;
  state.seeded_ = true;
  state.left_ = 1;  // the next draw makes a fresh block of 624 words
  state.next_ = 0;
  static_assert(sizeof(state.state_) == 624 * sizeof(uint32_t));
  for (size_t i = 0; i < 624; i += 4) {
    const Block b = block(key, i / 4);
    std::copy(b.begin(), b.end(), state.state_.begin() + static_cast<ptrdiff_t>(i));
  }
  state.state_[0] |= 0x80000000u;  // never the all-zero state
  at::mt19937 engine;
  engine.set_data(state);
  at::check_generator<at::CPUGeneratorImpl>(generator)->set_engine(engine);
  return generator;
}

Tensor uniform_by_id(const Tensor& ids, int64_t columns, uint64_t seed, Stream stream, int64_t step) {
  return rows_by_id(ids, {}, {columns}, uniform_row, [&](int64_t id) { return stream_key(seed, stream, step, id); });
}

Tensor uniform_by_id(const Tensor& ids, const Tensor& first, int64_t columns, uint64_t seed, Stream stream, int64_t step) {
  check_ids(first);
  if (first.sizes() != ids.sizes()) fail("{} first columns for {} sample ids", first.size(0), ids.size(0));
  return rows_by_id(ids, first, {columns}, uniform_row, [&](int64_t id) { return stream_key(seed, stream, step, id); });
}

Tensor normal_by_id(const Tensor& ids, at::IntArrayRef shape, uint64_t seed, Stream stream, int64_t step) {
  return rows_by_id(ids, {}, shape.vec(), normal_row, [&](int64_t id) { return stream_key(seed, stream, step, id); });
}

}  // namespace fewstep
