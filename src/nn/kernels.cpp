#include "src/nn/kernels.h"

#include <bit>
#include <cmath>

// Compiled once for the baseline and, on x86-64, once with -mavx2 -mfma (FEW_KERNELS names the namespace);
// kernels_pick.cpp chooses at run time. NaN goes through every function as NaN.
namespace fewstep::nn::kernels::FEW_KERNELS {
namespace {

constexpr int64_t kLanes = 32;  // independent partial sums: order fixed by us, so no -ffast-math is needed

inline __attribute__((always_inline)) float total(const float* lane) {
  float sum = 0;
  for (int64_t j = 0; j < kLanes; ++j) sum += lane[j];
  return sum;
}

// Cephes' expf: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]; 1 ulp. Clamped, not cut: the ends stay finite, and a
// NaN fails both comparisons and stays.
inline __attribute__((always_inline)) float exp_lane(float x) {
  x = x > 88.0f ? 88.0f : x;
  x = x < -87.0f ? -87.0f : x;
  const float t = x * 1.44269504088896341f;
  const float n = static_cast<float>(static_cast<int32_t>(t + (t < 0 ? -0.5f : 0.5f)));
  float r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
}

inline __attribute__((always_inline)) float sigmoid(float x) { return 1.0f / (1.0f + exp_lane(-x)); }

void rms_norm(const float* x, const float* w, float* y, float* rstd, int64_t rows, int64_t dim, float eps) {
  for (int64_t row = 0; row < rows; ++row, x += dim, y += dim) {
    float lane[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= dim; i += kLanes)
      for (int64_t j = 0; j < kLanes; ++j) lane[j] += x[i + j] * x[i + j];
    for (; i < dim; ++i) lane[0] += x[i] * x[i];
    const float r = 1.0f / std::sqrt(total(lane) / static_cast<float>(dim) + eps);
    rstd[row] = r;
    for (i = 0; i < dim; ++i) y[i] = x[i] * r * w[i];
  }
}

void rms_norm_backward(const float* dy, const float* x, const float* w, const float* rstd, float* dx,
                                  float* dw, int64_t rows, int64_t dim) {
  for (int64_t row = 0; row < rows; ++row, dy += dim, x += dim) {
    const float r = rstd[row];
    if (dw != nullptr)
      for (int64_t i = 0; i < dim; ++i) dw[i] += dy[i] * (x[i] * r);
    if (dx == nullptr) continue;
    float lane[kLanes] = {};  // sum of dy w x
    int64_t i = 0;
    for (; i + kLanes <= dim; i += kLanes)
      for (int64_t j = 0; j < kLanes; ++j) lane[j] += dy[i + j] * w[i + j] * x[i + j];
    for (; i < dim; ++i) lane[0] += dy[i] * w[i] * x[i];
    // d/dx (x r) with dr/dx = -r^3 x / dim
    const float c = total(lane) / static_cast<float>(dim) * r * r * r;
    for (i = 0; i < dim; ++i) dx[i] = dy[i] * w[i] * r - x[i] * c;
    dx += dim;
  }
}

void rotary(const RotaryRows& r) {
  const int64_t half = r.dim / 2;
  const float *cos = r.cos, *sin = r.sin;
  const float sign = r.sign;
  for (int64_t h = 0; h < r.heads; ++h) {
    const float *a = r.x + h * r.stride, *b = a + half;
    float *u = r.out + h * r.out_stride, *v = u + half;
    for (int64_t i = 0; i < half; ++i) {
      const float s = sign * sin[i];
      const float first = a[i] * cos[i] - b[i] * s;
      v[i] = b[i] * cos[i] + a[i] * s;
      u[i] = first;
    }
  }
}

void swiglu(const float* gate, const float* up, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = gate[i] * sigmoid(gate[i]) * up[i];
}

void swiglu_backward(const float* dout, const float* gate, const float* up, float* dgate, float* dup,
                                int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float s = sigmoid(gate[i]), silu = gate[i] * s;
    dup[i] = dout[i] * silu;
    dgate[i] = dout[i] * up[i] * (s + silu * (1.0f - s));
  }
}

}  // namespace

extern const Table table;
const Table table{rms_norm, rms_norm_backward, rotary, swiglu, swiglu_backward};

}  // namespace fewstep::nn::kernels::FEW_KERNELS
