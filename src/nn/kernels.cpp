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

// gelu(x) = x cdf(x); erf by Abramowitz and Stegun 7.1.26, whose error is below 1.5e-7.
struct Gaussian {
  float cdf, density;
};
inline __attribute__((always_inline)) Gaussian gaussian(float x) {
  constexpr float kInvSqrt2 = 0.70710678118654752f, kInvSqrt2Pi = 0.39894228040143268f;
  const float a = (x < 0 ? -x : x) * kInvSqrt2;
  const float e = exp_lane(-a * a), t = 1.0f / (1.0f + 0.3275911f * a);
  float p = 1.061405429f;
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const float tail = 0.5f * p * t * e;  // 1 - cdf(|x|)
  return {x < 0 ? tail : 1.0f - tail, kInvSqrt2Pi * e};
}

void geglu(const float* hidden, const float* gate, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = hidden[i] * (gate[i] * gaussian(gate[i]).cdf);
}

void geglu_backward(const float* dout, const float* hidden, const float* gate, float* dhidden, float* dgate, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float x = gate[i];
    const Gaussian g = gaussian(x);
    dhidden[i] = dout[i] * (x * g.cdf);
    dgate[i] = dout[i] * hidden[i] * (g.cdf + x * g.density);
  }
}

inline float shift_of(const NormGroup& g, int64_t c) { return g.shift != nullptr ? g.shift[c] : 0.0f; }

// Sum over one plane of (x - center), squared or not.
template <bool squared>
inline __attribute__((always_inline)) double plane_sum(const float* x, int64_t n, float center) {
  float lane[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int64_t j = 0; j < kLanes; ++j) {
      const float d = x[i + j] - center;
      lane[j] += squared ? d * d : d;
    }
  for (; i < n; ++i) {
    const float d = x[i] - center;
    lane[0] += squared ? d * d : d;
  }
  return static_cast<double>(total(lane));
}

// Two passes for the variance: no cancellation where the mean is large beside the spread. A group is small: the second and
// third pass find it in the cache.
void norm_silu(const NormGroup& g, float eps, float* y, float* moments) {
  const auto pixels = static_cast<double>(g.pixels), count = pixels * static_cast<double>(g.channels);
  double sum = 0, squares = 0;
  for (int64_t c = 0; c < g.channels; ++c) sum += plane_sum<false>(g.x + c * g.pixels, g.pixels, 0.0f) + pixels * static_cast<double>(shift_of(g, c));
  const auto mean = static_cast<float>(sum / count);
  for (int64_t c = 0; c < g.channels; ++c) squares += plane_sum<true>(g.x + c * g.pixels, g.pixels, mean - shift_of(g, c));
  const auto rstd = static_cast<float>(1.0 / std::sqrt(squares / count + static_cast<double>(eps)));
  for (int64_t c = 0; c < g.channels; ++c) {
    const float scale = g.weight[c] * rstd, center = mean - shift_of(g, c), bias = g.bias[c];
    const float* x = g.x + c * g.pixels;
    float* out = y + c * g.pixels;
    for (int64_t i = 0; i < g.pixels; ++i) {
      const float z = (x[i] - center) * scale + bias;
      out[i] = z * sigmoid(z);
    }
  }
  moments[0] = mean, moments[1] = rstd;
}

// dz = dy silu'(z) goes to dx first, with its sums over each plane; then dx = rstd (weight dz - mean(weight dz) - h mean(weight
// dz h)) with h = (x + shift - mean) rstd and means over the group.
void norm_silu_backward(const NormGroup& g, const float* moments, const NormGroupGrads& grads) {
  const float mean = moments[0], rstd = moments[1];
  double all = 0, along = 0;
  for (int64_t c = 0; c < g.channels; ++c) {
    const float weight = g.weight[c], bias = g.bias[c], center = mean - shift_of(g, c);
    const float *x = g.x + c * g.pixels, *dy = grads.dy + c * g.pixels;
    float* dz = grads.dx + c * g.pixels;
    float sum[kLanes] = {}, dot[kLanes] = {};
    const auto at = [&](int64_t i, int64_t j) __attribute__((always_inline)) {
      const float h = (x[i] - center) * rstd, z = h * weight + bias, s = sigmoid(z);
      const float d = dy[i] * (s * (1.0f + z * (1.0f - s)));
      dz[i] = d;
      sum[j] += d;
      dot[j] += d * h;
    };
    int64_t i = 0;
    for (; i + kLanes <= g.pixels; i += kLanes)
      for (int64_t j = 0; j < kLanes; ++j) at(i + j, j);
    for (; i < g.pixels; ++i) at(i, 0);
    grads.dbias[c] = total(sum);
    grads.dweight[c] = total(dot);
    all += static_cast<double>(weight * grads.dbias[c]);
    along += static_cast<double>(weight * grads.dweight[c]);
  }
  const double count = static_cast<double>(g.pixels) * static_cast<double>(g.channels);
  const auto offset = static_cast<float>(all / count), slope = static_cast<float>(along / count);
  for (int64_t c = 0; c < g.channels; ++c) {
    const float weight = g.weight[c], center = mean - shift_of(g, c);
    const float* x = g.x + c * g.pixels;
    float* dx = grads.dx + c * g.pixels;
    for (int64_t i = 0; i < g.pixels; ++i) dx[i] = rstd * (weight * dx[i] - offset - (x[i] - center) * rstd * slope);
    if (grads.dshift != nullptr) grads.dshift[c] = static_cast<float>(plane_sum<false>(dx, g.pixels, 0.0f));
  }
}

}  // namespace

extern const Table table;
const Table table{rms_norm, rms_norm_backward, rotary, swiglu, swiglu_backward, geglu, geglu_backward, norm_silu, norm_silu_backward};

}  // namespace fewstep::nn::kernels::FEW_KERNELS
