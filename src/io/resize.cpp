#include "src/io/resize.h"

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <numbers>
#include <vector>

#include "src/base/error.h"

namespace fewstep::io {
namespace {

// Coefficients are integers with this many fraction bits; with an 8-bit sample and a sign they fill 32 bits.
constexpr int kBits = 32 - 8 - 2;
constexpr int32_t kHalf = 1 << (kBits - 1);
// A coefficient is also kept as high * 2^11 + low, 0 <= low < 2^11: both fit 16 bits, so pmaddwd makes two exact
// products a lane. |high| < 2^12 and 255 * 2^11 * taps leave room for thousands of taps.
constexpr int kLowBits = 11;

double triangle(double x) { return std::max(0.0, 1.0 - std::abs(x)); }
double cubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}
double sinc(double x) {
  if (x == 0.0) return 1.0;
  x *= std::numbers::pi;
  return std::sin(x) / x;
}
double lanczos3(double x) { return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0; }

struct Filter {
  double (*value)(double);
  double support;
};
Filter filter_of(Resample r) {
  switch (r) {
    case Resample::bilinear:
      return {triangle, 1.0};
    case Resample::bicubic:
      return {cubic, 2.0};
    case Resample::lanczos:
      return {lanczos3, 3.0};
  }
  fail("unknown resampling filter {}", static_cast<int>(r));
}

struct Taps {
  int64_t first = 0, count = 0;  // input samples
  const int32_t* weight = nullptr;
};
struct Kernel {
  int64_t stride = 0;  // weights per output, a multiple of four; unused ones are zero
  std::vector<int32_t> weights;
  std::vector<Taps> taps;  // one per output in the window
};

// Weights of outputs [begin, end) of `out` samples made from `in`. The order of the double operations is Pillow's.
Kernel make_kernel(int64_t in, int64_t out, const Filter& filter, int64_t begin, int64_t end) {
  const double scale = static_cast<double>(in) / static_cast<double>(out), filter_scale = std::max(scale, 1.0);
  const double support = filter.support * filter_scale, inverse = 1.0 / filter_scale;
  Kernel k;
  k.stride = (static_cast<int64_t>(std::ceil(support)) * 2 + 1 + 3) / 4 * 4;
  k.weights.assign(static_cast<size_t>(k.stride * (end - begin)), 0);
  std::vector<double> w(static_cast<size_t>(k.stride));
  for (int64_t o = begin; o < end; ++o) {
    const double center = (static_cast<double>(o) + 0.5) * scale;
    const int64_t first = std::max<int64_t>(static_cast<int64_t>(center - support + 0.5), 0);
    const int64_t last = std::min<int64_t>(static_cast<int64_t>(center + support + 0.5), in), count = last - first;
    double sum = 0.0;
    for (int64_t i = 0; i < count; ++i) {
      w[static_cast<size_t>(i)] = filter.value((static_cast<double>(i + first) - center + 0.5) * inverse);
      sum += w[static_cast<size_t>(i)];
    }
    int32_t* to = &k.weights[static_cast<size_t>(k.stride * (o - begin))];
    for (int64_t i = 0; i < count; ++i) {
      double v = w[static_cast<size_t>(i)];
      if (sum != 0.0) v /= sum;
      to[i] = static_cast<int32_t>(v < 0 ? -0.5 + v * (1 << kBits) : 0.5 + v * (1 << kBits));
    }
    k.taps.push_back({first, count, to});
  }
  return k;
}

uint8_t clip8(int32_t sum) { return static_cast<uint8_t>(std::clamp(sum >> kBits, 0, 255)); }

// One row: out[x, c] = sum_k weight[x][k] in[first_x + k, c]
template <int C>
void horizontal_plain(const uint8_t* in, uint8_t* out, const Kernel& kernel) {
  for (const Taps& t : kernel.taps) {
    int32_t sum[C];
    std::fill_n(sum, C, kHalf);
    const uint8_t* p = in + t.first * C;
    for (int64_t k = 0; k < t.count; ++k, p += C)
      for (int c = 0; c < C; ++c) sum[c] += p[c] * t.weight[k];
    for (int c = 0; c < C; ++c) *out++ = clip8(sum[c]);
  }
}

// One row of n bytes from `begin` on: out[i] = sum_k weight[k] rows[k][i]
void vertical_plain(const uint8_t* rows, int64_t n, uint8_t* out, const Taps& t, int64_t begin) {
  for (int64_t i = begin; i < n; ++i) {
    int32_t sum = kHalf;
    for (int64_t k = 0; k < t.count; ++k) sum += rows[k * n + i] * t.weight[k];
    out[i] = clip8(sum);
  }
}

// --- AVX2
struct Split {  // pairs of taps as two 16-bit halves
  int32_t high, low;
};
Split split_pair(int32_t w0, int32_t w1) {
  const auto pack = [](int32_t a, int32_t b) {
    return (a & 0xffff) | static_cast<int32_t>(static_cast<uint32_t>(b) << 16);
  };
  constexpr int32_t mask = (1 << kLowBits) - 1;
  return {pack(w0 >> kLowBits, w1 >> kLowBits), pack(w0 & mask, w1 & mask)};
}

// RGB weights in the order the shuffle below gives the samples: per four taps, [t0 t1]x3 [0 0] [t2 t3]x3 [0 0].
std::vector<int32_t> rgb_weights(const Kernel& kernel) {
  std::vector<int32_t> out;
  out.reserve(kernel.weights.size() * 4);
  for (size_t i = 0; i < kernel.weights.size(); i += 4) {
    const int32_t* w = &kernel.weights[i];
    const Split a = split_pair(w[0], w[1]), b = split_pair(w[2], w[3]);
    out.insert(out.end(), {a.high, a.high, a.high, 0, b.high, b.high, b.high, 0});
    out.insert(out.end(), {a.low, a.low, a.low, 0, b.low, b.low, b.low, 0});
  }
  return out;
}

// `in` must be readable for 16 bytes from any tap group's first sample: the caller pads the row.
__attribute__((target("avx2"))) void horizontal_rgb_avx2(const uint8_t* in, uint8_t* out, const Kernel& kernel,
                                                         const std::vector<int32_t>& weights) {
  // r0 g0 b0 r1 g1 b1 r2 ... -> r0 r1 g0 g1 b0 b1 . . r2 r3 g2 g3 b2 b3 . .
  const __m128i order = _mm_setr_epi8(0, 3, 1, 4, 2, 5, -1, -1, 6, 9, 7, 10, 8, 11, -1, -1);
  const int64_t stride = kernel.stride * 4;
  const int32_t* w = weights.data();
  for (const Taps& t : kernel.taps) {
    __m256i high = _mm256_setzero_si256(), low = _mm256_setzero_si256();
    const uint8_t* p = in + t.first * 3;
    const int32_t* v = w;
    for (int64_t k = 0; k < t.count; k += 4, p += 12, v += 16) {
      const __m128i bytes = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), order);
      const __m256i samples = _mm256_cvtepu8_epi16(bytes);
      high =
          _mm256_add_epi32(high, _mm256_madd_epi16(samples, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(v))));
      low = _mm256_add_epi32(low,
                             _mm256_madd_epi16(samples, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(v + 8))));
    }
    const __m256i both = _mm256_add_epi32(_mm256_slli_epi32(high, kLowBits), low);
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
    sum = _mm_srai_epi32(_mm_add_epi32(sum, _mm_set1_epi32(kHalf)), kBits);
    sum = _mm_packus_epi16(_mm_packs_epi32(sum, sum), sum);  // saturation clips to 0...255
    const int32_t rgb = _mm_cvtsi128_si32(sum);
    std::memcpy(out, &rgb, 3);
    out += 3;
    w += stride;
  }
}

// 16 bytes at a time; the remainder is left to the plain code.
__attribute__((target("avx2"))) int64_t vertical_avx2(const uint8_t* rows, int64_t n, uint8_t* out, const Taps& t,
                                                      std::vector<Split>& pairs) {
  pairs.clear();
  for (int64_t k = 0; k < t.count; k += 2)
    pairs.push_back(split_pair(t.weight[k], k + 1 < t.count ? t.weight[k + 1] : 0));
  const __m256i half = _mm256_set1_epi32(kHalf);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    __m256i high0 = _mm256_setzero_si256(), high1 = high0, low0 = high0, low1 = high0;
    const uint8_t* p = rows + i;
    for (size_t k = 0; k < pairs.size(); ++k, p += 2 * n) {
      const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
      const bool single = static_cast<int64_t>(2 * k + 1) == t.count;
      const __m128i b = single ? _mm_setzero_si128() : _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + n));
      const __m256i s0 = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(a, b)),
                    s1 = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(a, b));
      const __m256i h = _mm256_set1_epi32(pairs[k].high), l = _mm256_set1_epi32(pairs[k].low);
      high0 = _mm256_add_epi32(high0, _mm256_madd_epi16(s0, h));
      high1 = _mm256_add_epi32(high1, _mm256_madd_epi16(s1, h));
      low0 = _mm256_add_epi32(low0, _mm256_madd_epi16(s0, l));
      low1 = _mm256_add_epi32(low1, _mm256_madd_epi16(s1, l));
    }
    const __m256i sum0 = _mm256_add_epi32(_mm256_add_epi32(_mm256_slli_epi32(high0, kLowBits), low0), half);
    const __m256i sum1 = _mm256_add_epi32(_mm256_add_epi32(_mm256_slli_epi32(high1, kLowBits), low1), half);
    // packs works within 128-bit lanes: lanes are 0-3|4-7 and 8-11|12-15, so the quarters are put in order after it.
    __m256i words = _mm256_packs_epi32(_mm256_srai_epi32(sum0, kBits), _mm256_srai_epi32(sum1, kBits));
    words = _mm256_permute4x64_epi64(words, 0xd8);
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), bytes);
  }
  return i;
}

std::atomic<bool> avx2_wanted{true};
bool have_avx2() { return avx2_wanted.load(std::memory_order_relaxed) && __builtin_cpu_supports("avx2"); }

// Rows [y0, y1) of `in`, resampled along x.
Pixels horizontal(const Pixels& in, const Kernel& kernel, int64_t y0, int64_t y1) {
  Pixels out(static_cast<int64_t>(kernel.taps.size()), y1 - y0, in.channels);
  if (in.channels == 3 && have_avx2()) {
    const std::vector<int32_t> weights = rgb_weights(kernel);
    // Groups of four taps may reach past the row's end, where their weights are zero.
    std::vector<uint8_t> padded(static_cast<size_t>(in.row_bytes() + 12 + 16), 0);
    for (int64_t y = y0; y < y1; ++y) {
      const uint8_t* row = in.row(y);
      if (y + 1 == in.height || in.row_bytes() < 32) {  // elsewhere the next row is there to be read
        std::memcpy(padded.data(), row, static_cast<size_t>(in.row_bytes()));
        row = padded.data();
      }
      horizontal_rgb_avx2(row, out.row(y - y0), kernel, weights);
    }
    return out;
  }
  for (int64_t y = y0; y < y1; ++y) {
    if (in.channels == 1)
      horizontal_plain<1>(in.row(y), out.row(y - y0), kernel);
    else
      horizontal_plain<3>(in.row(y), out.row(y - y0), kernel);
  }
  return out;
}

// `first`: the input row that in.row(0) is.
Pixels vertical(const Pixels& in, const Kernel& kernel, int64_t first) {
  Pixels out(in.width, static_cast<int64_t>(kernel.taps.size()), in.channels);
  std::vector<Split> pairs;
  const int64_t n = in.row_bytes();
  const bool avx2 = have_avx2();
  for (int64_t y = 0; y < out.height; ++y) {
    const Taps& t = kernel.taps[static_cast<size_t>(y)];
    const uint8_t* rows = in.row(t.first - first);
    const int64_t done = avx2 ? vertical_avx2(rows, n, out.row(y), t, pairs) : 0;
    vertical_plain(rows, n, out.row(y), t, done);
  }
  return out;
}

Pixels crop(const Pixels& in, const Window& w) {
  Pixels out(w.width, w.height, in.channels);
  for (int64_t y = 0; y < w.height; ++y)
    std::memcpy(out.row(y), in.row(w.y + y) + w.x * in.channels, static_cast<size_t>(out.row_bytes()));
  return out;
}

}  // namespace

bool use_avx2(bool on) { return avx2_wanted.exchange(on); }

PixelSize short_side_size(PixelSize size, int64_t short_side) {
  if (size.width <= size.height) return {short_side, std::max<int64_t>(1, short_side * size.height / size.width)};
  return {std::max<int64_t>(1, short_side * size.width / size.height), short_side};
}

Pixels resize_pixels(const Pixels& in, PixelSize size, Resample filter, const Window& window) {
  FEW_CHECK(in.channels == 1 || in.channels == 3, "resize: {} channels", in.channels);
  FEW_CHECK(window.x >= 0 && window.y >= 0 && window.width > 0 && window.height > 0 &&
                window.x + window.width <= size.width && window.y + window.height <= size.height,
            "resize: window {} x {} at ({}, {}) of {} x {}", window.width, window.height, window.x, window.y,
            size.width, size.height);
  const Filter f = filter_of(filter);
  const bool along_x = size.width != in.width, along_y = size.height != in.height;
  if (!along_x && !along_y) return crop(in, window);
  if (!along_y)
    return horizontal(in, make_kernel(in.width, size.width, f, window.x, window.x + window.width), window.y,
                      window.y + window.height);
  const Kernel ky = make_kernel(in.height, size.height, f, window.y, window.y + window.height);
  const int64_t first = ky.taps.front().first, last = ky.taps.back().first + ky.taps.back().count;
  const Pixels narrow =
      along_x ? horizontal(in, make_kernel(in.width, size.width, f, window.x, window.x + window.width), first, last)
              : crop(in, {window.x, first, window.width, last - first});
  return vertical(narrow, ky, first);
}

}  // namespace fewstep::io
