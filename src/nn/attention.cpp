#include "src/nn/attention.h"

#include "src/base/error.h"
#include "src/nn/fused.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::nn {

Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& mask, bool causal) {
  const auto [B, Hq, Lq, D] = dims<4>(q);
  const auto [Bk, Hkv, Lk, Dk] = dims<4>(k);
  if (Hkv < 1 || Hq % Hkv != 0) fail("attention: {} query heads are no multiple of {} key-value heads", Hq, Hkv);
  if (Bk != B || Dk != D) fail("attention: q is [{}, ., ., {}] but k is [{}, ., ., {}]", B, D, Bk, Dk);
  if (causal && Lq != Lk) fail("attention: causal needs as many queries as keys, got {} and {}: pass a mask", Lq, Lk);
  std::optional<Tensor> bias;
  if (mask.defined()) {
    if (causal) fail("attention: give a mask or causal, not both");
    bias = mask;  // bool is turned into a float mask inside, once per call: the flash kernel of the CPU takes it
  }
  return at::scaled_dot_product_attention(q, k, v, bias, 0.0, causal, std::nullopt, /*enable_gqa=*/Hq != Hkv);
}

RotaryTable rotary_table(int64_t positions, int64_t head_dim, double theta) {
  if (head_dim < 2 || head_dim % 2 != 0) fail("rotary embedding: head_dim must be even, got {}", head_dim);
  // As transformers: frequencies and angles in float32.
  const Tensor exponent = at::arange(0, head_dim, 2, at::kLong).to(at::kFloat) / static_cast<double>(head_dim);
  const Tensor frequency = at::scalar_tensor(theta, at::kFloat).pow(exponent).reciprocal();        // [D / 2]
  const Tensor angle = at::outer(at::arange(positions, at::kLong).to(at::kFloat), frequency);      // [L, D / 2]
  const Tensor both = at::cat({angle, angle}, -1);                                                 // [L, D]
  return {both.cos(), both.sin()};
}

Tensor apply_rotary(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  return rotary(x, cos, sin);
}

}  // namespace fewstep::nn
