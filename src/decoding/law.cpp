#include "src/decoding/law.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <bit>
#include <functional>

#include "src/tensor/ops.h"

namespace fewstep::decoding {
namespace {

// Order-preserving integer of a float; its upper 11 bits are sign, exponent and two bits of the mantissa.
uint32_t ordered(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

float from_ordered(uint32_t x) { return std::bit_cast<float>(x >> 31 ? x & 0x7fffffffu : ~x); }

// The k-th largest of n values: one bin of a histogram holds it, and the search goes on in that bin only. In integers, which
// have an order even where a float is not a number.
float kth_of_row(const float* row, int64_t n, int64_t k, std::vector<uint32_t>& bin) {
  constexpr int kShift = 21;
  std::array<int64_t, 1 << (32 - kShift)> count{};
  for (int64_t i = 0; i < n; ++i) ++count[ordered(row[i]) >> kShift];
  size_t at_bin = count.size() - 1;
  for (; count[at_bin] < k; --at_bin) k -= count[at_bin];
  bin.clear();
  for (int64_t i = 0; i < n; ++i)
    if (const uint32_t x = ordered(row[i]); x >> kShift == at_bin) bin.push_back(x);
  std::nth_element(bin.begin(), bin.begin() + (k - 1), bin.end(), std::greater<>());
  return from_ordered(bin[static_cast<size_t>(k - 1)]);
}

// [..., K] -> [..., 1]. topk keeps and orders k pairs a row to find it: with 2,000 of 8,192 codes that was longer than all other
// work on the law.
Tensor kth_largest(const Tensor& x, int64_t k) {
  if (!x.is_cpu() || x.scalar_type() != at::kFloat) return std::get<0>(x.topk(k, -1, true, /*sorted=*/false)).amin(-1, true);
  auto shape = x.sizes().vec();
  shape.back() = 1;
  const Tensor rows = x.contiguous(), out = at::empty(shape, x.options());
  const int64_t K = x.size(-1);
  const float* in = rows.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  at::parallel_for(0, out.numel(), 1, [&](int64_t begin, int64_t end) {
    std::vector<uint32_t> bin;
    for (int64_t i = begin; i < end; ++i) to[i] = kth_of_row(in + i * K, K, k, bin);
  });
  return out;
}

}  // namespace

Tensor code_law(const Tensor& logits, const SamplingOptions& options) {
  const int64_t K = logits.size(-1);
  Tensor l = logits.scalar_type() == at::kDouble ? logits : logits.to(at::kFloat);
  if (options.temperature <= 0) return at::zeros_like(l).scatter_(-1, l.argmax(-1, true), 1.0);
  if (options.temperature != 1) l = l / options.temperature;
  if (options.top_k > 0 && options.top_k < K) {
    l = l.masked_fill(l.lt(kth_largest(l, options.top_k)), -std::numeric_limits<double>::infinity());
  }
  Tensor p = at::softmax(l, -1);
  if (options.top_p < 1) {
    const auto [sorted, order] = p.sort(-1, true);
    const Tensor before = sorted.cumsum(-1) - sorted;  // mass in front of each: the first is always kept
    p = at::zeros_like(p).scatter_(-1, order, sorted.masked_fill(before.ge(options.top_p), 0));
    p = p / p.sum(-1, true);
  }
  return p;
}

Tensor draw(const Tensor& weights, const Tensor& uniforms) {
  const Tensor cumulative = weights.to(at::kDouble).cumsum(-1);
  // Scaled by the total, so that rounding can never point behind the last code with mass.
  const Tensor target = uniforms.to(at::kDouble).unsqueeze(-1) * cumulative.narrow(-1, -1, 1);
  return at::searchsorted(cumulative, target, false, true).squeeze(-1).clamp_max(weights.size(-1) - 1);
}

Tensor residual(const Tensor& p, const Tensor& q) {
  const Tensor rest = (p - q).clamp_min_(0);
  return at::where(rest.sum(-1, true) > 0, rest, p);
}

Tensor gumbel_argmax(const Tensor& p, const Tensor& exp_g) { return (p * exp_g.to(p.scalar_type())).argmax(-1); }

Tensor exp_gumbel(const Tensor& uniforms) {
  const Tensor u = uniforms.to(at::kDouble) + 0x1.0p-25;  // the middle of the step of 2^-24
  return u.log().reciprocal_().neg_();
}

Tensor entropy(const Tensor& p) { return at::special_entr(p).sum(-1); }

}  // namespace fewstep::decoding
