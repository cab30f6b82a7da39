#include "src/nn/fused.h"

#include <ATen/Parallel.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "src/base/error.h"
#include "src/nn/fused_node.h"
#include "src/nn/kernels.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::nn {
namespace {

// --- RMSNorm

struct RmsNormBackward : FusedNode {
  SavedVariable x, weight;
  Tensor rstd;
  std::string name() const override { return "RmsNormBackward"; }
  void release_variables() override {
    x.reset_data();
    weight.reset_data();
  }
  variable_list apply(variable_list&& grads) override {
    refuse_double_backward();
    if (!grads[0].defined()) return {Tensor(), Tensor()};
    const Tensor input = x.unpack(), w = weight.unpack(), dy = grads[0].contiguous();
    const int64_t dim = w.numel(), rows = input.numel() / dim;
    const Tensor dx = task_should_compute_output(0) ? at::empty_like(input) : Tensor();
    // Partial sums over a fixed number of row groups: the result does not depend on the number of threads.
    const int64_t parts = std::clamp<int64_t>(rows / 16, 1, 16);
    const Tensor dw = task_should_compute_output(1) ? at::zeros({parts, dim}, at::kFloat) : Tensor();
    const float *g = dy.const_data_ptr<float>(), *in = input.const_data_ptr<float>(), *r = rstd.const_data_ptr<float>();
    const float* scale = w.const_data_ptr<float>();
    float* out = dx.defined() ? dx.mutable_data_ptr<float>() : nullptr;
    float* sums = dw.defined() ? dw.mutable_data_ptr<float>() : nullptr;
    at::parallel_for(0, parts, std::max<int64_t>(1, parts * kGrain / std::max<int64_t>(1, rows * dim)),
                     [&](int64_t begin, int64_t end) {
                       for (int64_t p = begin; p < end; ++p) {
                         const int64_t first = rows * p / parts, last = rows * (p + 1) / parts;
                         kernels::table().rms_norm_backward(g + first * dim, in + first * dim, scale, r + first,
                                                            out ? out + first * dim : nullptr,
                                                            sums ? sums + p * dim : nullptr, last - first, dim);
                       }
                     });
    return {dx, dw.defined() ? dw.sum(0) : Tensor()};
  }
};

// --- rotary

// Strides of x [B, H, L, D] with D contiguous; cos and sin are [B or 1, L, D] contiguous.
Tensor rotate(const Tensor& x, const Tensor& cos, const Tensor& sin, float sign) {
  const auto [B, H, L, D] = dims<4>(x);
  const Tensor out = at::empty_like(x);  // keeps the layout of a transposed [B, L, H, D]
  const float *in = x.const_data_ptr<float>(), *c = cos.const_data_ptr<float>(), *s = sin.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  const int64_t table_batch = cos.size(0) == 1 ? 0 : L * D;
  at::parallel_for(0, B * L, grain(H * D), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / L, l = i % L, place = b * table_batch + l * D;
      kernels::table().rotary({in + b * x.stride(0) + l * x.stride(2), to + b * out.stride(0) + l * out.stride(2),
                               c + place, s + place, H, D, x.stride(1), out.stride(1), sign});
    }
  });
  return out;
}

struct RotaryBackward : FusedNode {
  Tensor cos, sin;
  std::string name() const override { return "RotaryBackward"; }
  variable_list apply(variable_list&& grads) override {
    refuse_double_backward();
    if (!grads[0].defined()) return {Tensor()};
    const Tensor& g = grads[0];
    return {rotate(g.stride(3) == 1 || g.size(3) == 1 ? g : g.contiguous(), cos, sin, -1.0f)};
  }
};

Tensor composite_rotary(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  const std::vector<Tensor> half = x.chunk(2, -1);
  const Tensor c = cos.to(x.scalar_type()), s = sin.to(x.scalar_type());
  return x * c + at::cat({-half[1], half[0]}, -1) * s;
}

// --- SwiGLU

struct SwigluBackward : FusedNode {
  SavedVariable gate, up;
  std::string name() const override { return "SwigluBackward"; }
  void release_variables() override {
    gate.reset_data();
    up.reset_data();
  }
  variable_list apply(variable_list&& grads) override {
    refuse_double_backward();
    if (!grads[0].defined()) return {Tensor(), Tensor()};
    const Tensor g = gate.unpack(), u = up.unpack(), dout = grads[0].contiguous();
    const Tensor dgate = at::empty_like(g), dup = at::empty_like(u);
    const float *d = dout.const_data_ptr<float>(), *pg = g.const_data_ptr<float>(), *pu = u.const_data_ptr<float>();
    float *dg = dgate.mutable_data_ptr<float>(), *du = dup.mutable_data_ptr<float>();
    at::parallel_for(0, g.numel(), kGrain, [&](int64_t begin, int64_t end) {
      kernels::table().swiglu_backward(d + begin, pg + begin, pu + begin, dg + begin, du + begin, end - begin);
    });
    return {dgate, dup};
  }
};

// --- GEGLU

struct GegluBackward : FusedNode {
  SavedVariable projected;
  std::string name() const override { return "GegluBackward"; }
  void release_variables() override { projected.reset_data(); }
  variable_list apply(variable_list&& grads) override {
    refuse_double_backward();
    if (!grads[0].defined()) return {Tensor()};
    const Tensor input = projected.unpack(), dout = grads[0].contiguous(), dinput = at::empty_like(input);
    const int64_t width = input.size(-1) / 2;
    const float *d = dout.const_data_ptr<float>(), *in = input.const_data_ptr<float>();
    float* out = dinput.mutable_data_ptr<float>();
    at::parallel_for(0, input.numel() / (2 * width), grain(width), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t hidden = 2 * row * width, gate = hidden + width;
        kernels::table().geglu_backward(d + row * width, in + hidden, in + gate, out + hidden, out + gate, width);
      }
    });
    return {dinput};
  }
};

}  // namespace

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  if (x.size(-1) != weight.numel()) fail("RMSNorm: {} channels, but the weight has {}", x.size(-1), weight.numel());
  if (!plain_float(x) || !plain_float(weight) || x.numel() == 0) {
    const bool half = x.scalar_type() == at::kHalf || x.scalar_type() == at::kBFloat16;
    const Tensor h = half ? x.to(at::kFloat) : x;
    return weight * (h * at::rsqrt(h.square().mean(-1, true) + eps)).to(x.scalar_type());
  }
  const Tensor input = x.contiguous();
  const int64_t dim = weight.numel(), rows = input.numel() / dim;
  const auto options = at::TensorOptions().dtype(at::kFloat);
  const Tensor y = at::empty(input.sizes(), options), rstd = at::empty({rows}, options), w = weight.contiguous();
  const float *in = input.const_data_ptr<float>(), *scale = w.const_data_ptr<float>();
  float *out = y.mutable_data_ptr<float>(), *r = rstd.mutable_data_ptr<float>();
  at::parallel_for(0, rows, grain(dim), [&](int64_t begin, int64_t end) {
    kernels::table().rms_norm(in + begin * dim, scale, out + begin * dim, r + begin, end - begin, dim,
                              static_cast<float>(eps));
  });
  record(y, {input, w}, [&] {
    auto node = c10::make_intrusive<RmsNormBackward>();
    node->x = SavedVariable(input, false);
    node->weight = SavedVariable(w, false);
    node->rstd = rstd;
    return node;
  });
  return y;
}

Tensor rotary(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  const auto [B, H, L, D] = dims<4>(x);
  if (D % 2 != 0 || cos.size(-1) != D || cos.size(-2) != L || sin.sizes() != cos.sizes() || cos.dim() == 3 ||
      (cos.dim() == 4 && ((cos.size(0) != 1 && cos.size(0) != B) || cos.size(1) != 1)))
    fail("rotary embedding: x is [{}], cos [{}]; expected cos and sin [L, D] or [B, 1, L, D] with an even D",
         fmt::join(x.sizes(), ", "), fmt::join(cos.sizes(), ", "));
  if (!plain_float(x) || !plain_float(cos) || !plain_float(sin) || cos.requires_grad() || sin.requires_grad() ||
      x.numel() == 0)
    return composite_rotary(x, cos, sin);
  const Tensor input = x.stride(3) == 1 ? x : x.contiguous();
  const Tensor c = cos.contiguous().view({-1, L, D}), s = sin.contiguous().view({-1, L, D});
  const Tensor y = rotate(input.detach(), c, s, 1.0f);
  record(y, {input}, [&] {
    auto node = c10::make_intrusive<RotaryBackward>();
    node->cos = c;
    node->sin = s;
    return node;
  });
  return y;
}

Tensor swiglu(const Tensor& gate, const Tensor& up) {
  if (!plain_float(gate) || !plain_float(up) || gate.sizes() != up.sizes()) return at::silu(gate) * up;
  const Tensor g = gate.contiguous(), u = up.contiguous();
  const Tensor y = at::empty(g.sizes(), at::TensorOptions().dtype(at::kFloat));
  const float *pg = g.const_data_ptr<float>(), *pu = u.const_data_ptr<float>();
  float* out = y.mutable_data_ptr<float>();
  at::parallel_for(0, g.numel(), kGrain, [&](int64_t begin, int64_t end) {
    kernels::table().swiglu(pg + begin, pu + begin, out + begin, end - begin);
  });
  record(y, {g, u}, [&] {
    auto node = c10::make_intrusive<SwigluBackward>();
    node->gate = SavedVariable(g, false);
    node->up = SavedVariable(u, false);
    return node;
  });
  return y;
}

Tensor geglu(const Tensor& projected) {
  const int64_t width = projected.size(-1) / 2;
  if (projected.size(-1) % 2 != 0) fail("GEGLU: {} values do not divide into two halves", projected.size(-1));
  if (!plain_float(projected) || projected.numel() == 0) {
    const std::vector<Tensor> half = projected.chunk(2, -1);
    return half[0] * at::gelu(half[1]);
  }
  const Tensor input = projected.contiguous();
  std::vector<int64_t> shape = input.sizes().vec();
  shape.back() = width;
  const Tensor y = at::empty(shape, at::TensorOptions().dtype(at::kFloat));
  const float* in = input.const_data_ptr<float>();
  float* out = y.mutable_data_ptr<float>();
  at::parallel_for(0, input.numel() / (2 * width), grain(width), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      kernels::table().geglu(in + 2 * row * width, in + (2 * row + 1) * width, out + row * width, width);
  });
  record(y, {input}, [&] {
    auto node = c10::make_intrusive<GegluBackward>();
    node->projected = SavedVariable(input, false);
    return node;
  });
  return y;
}

}  // namespace fewstep::nn
