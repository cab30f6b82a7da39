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
};

const Table& table();  // for this CPU

}  // namespace fewstep::nn::kernels
