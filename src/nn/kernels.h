// Loops over float rows that PyTorch's CPU build has no fused operator for. Plain C++ that the compiler vectorises; no
// tensors, no threads: the callers in fused.cpp bring both.
#pragma once
#include <cstdint>

namespace fewstep::nn::kernels {

// `heads` rows of `dim` values, rotated by one position's cos and sin (length dim, the two halves alike):
// out = x cos + rotate_half(x) sin. sign = -1 is the inverse rotation, which is the backward pass.
struct RotaryRows {
  const float* x;
  float* out;
  const float *cos, *sin;
  int64_t heads, dim, stride, out_stride;  // strides from head to head, in values
  float sign;
};

// One group of a GroupNorm over (x + shift) followed by a SiLU: `channels` planes of `pixels` values, one after another.
struct NormGroup {
  const float* x;
  const float* shift;           // [channels] or null
  const float *weight, *bias;   // [channels]
  int64_t channels, pixels;
};
// Its gradients; each is overwritten, sums are over pixels of this group alone.
struct NormGroupGrads {
  const float* dy;
  float* dx;                          // as x; needed for the sums, too
  float *dweight, *dbias, *dshift;    // [channels]; dshift may be null
};

struct Table {
  // y = x r w with r = 1 / sqrt(mean(x^2) + eps), row by row; r goes to `rstd`.
  void (*rms_norm)(const float* x, const float* w, float* y, float* rstd, int64_t rows, int64_t dim, float eps);
  // dx of the same, and dw += sum over rows of dy x r. dx or dw may be null.
  void (*rms_norm_backward)(const float* dy, const float* x, const float* w, const float* rstd, float* dx, float* dw,
                            int64_t rows, int64_t dim);
  void (*rotary)(const RotaryRows& rows);
  // out = silu(gate) up; and its gradients.
  void (*swiglu)(const float* gate, const float* up, float* out, int64_t n);
  void (*swiglu_backward)(const float* dout, const float* gate, const float* up, float* dgate, float* dup, int64_t n);
  // out = hidden gelu(gate) with the exact (erf) GELU; and its gradients.
  void (*geglu)(const float* hidden, const float* gate, float* out, int64_t n);
  void (*geglu_backward)(const float* dout, const float* hidden, const float* gate, float* dhidden, float* dgate, int64_t n);
  // y = silu((x + shift - mean) rstd weight + bias); the two statistics go to `moments`.
  void (*norm_silu)(const NormGroup& group, float eps, float* y, float* moments);
  void (*norm_silu_backward)(const NormGroup& group, const float* moments, const NormGroupGrads& grads);
};

const Table& table();  // for this CPU

}  // namespace fewstep::nn::kernels
