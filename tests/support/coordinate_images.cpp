#include "tests/support/coordinate_images.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "src/base/error.h"
#include "src/tensor/ops.h"

namespace fewstep::testing {
namespace {

constexpr double kRampLow = 2, kRampSpan = 250, kWavePeriod = 32;

// Least-squares line through (t_i, v_i): {value at t = 0, slope}.
std::pair<double, double> fit_line(const std::vector<double>& t, const std::vector<double>& v) {
  double st = 0, sv = 0, stt = 0, stv = 0;
  const auto n = static_cast<double>(t.size());
  for (size_t i = 0; i < t.size(); ++i) st += t[i], sv += v[i], stt += t[i] * t[i], stv += t[i] * v[i];
  const double slope = (n * stv - st * sv) / (n * stt - st * st);
  return {(sv - slope * st) / n, slope};
}

// Energy of v (mean-free, t evenly spaced and centred) that c + a cos(w t) + b sin(w t) explains; t is symmetric around 0,
// so cosine and constant couple and the sine stands alone.
double explained(const std::vector<double>& t, const std::vector<double>& v, double w) {
  double c = 0, cc = 0, ss = 0, vc = 0, vs = 0, vv = 0;
  const auto n = static_cast<double>(t.size());
  double cosine = std::cos(w * t[0]), sine = std::sin(w * t[0]);
  const double turn_cosine = std::cos(w * (t[1] - t[0])), turn_sine = std::sin(w * (t[1] - t[0]));
  for (size_t i = 0; i < t.size(); ++i) {
    c += cosine, cc += cosine * cosine, ss += sine * sine, vc += v[i] * cosine, vs += v[i] * sine, vv += v[i];
    const double next = cosine * turn_cosine - sine * turn_sine;
    sine = sine * turn_cosine + cosine * turn_sine, cosine = next;
  }
  const double vc_free = vc - vv * c / n, cc_free = cc - c * c / n;
  return vc_free * vc_free / cc_free + vs * vs / ss;
}

// Period of the one wave in v. First from its zero crossings, then by least squares around that.
double wave_period(std::vector<double> t, std::vector<double> v) {
  double middle = 0, mean = 0;
  for (size_t i = 0; i < t.size(); ++i) middle += t[i], mean += v[i];
  middle /= static_cast<double>(t.size()), mean /= static_cast<double>(t.size());
  for (double& x : t) x -= middle;
  for (double& x : v) x -= mean;
  std::vector<double> crossings;
  for (size_t i = 1; i < v.size(); ++i)
    if ((v[i - 1] < 0) != (v[i] < 0)) crossings.push_back(t[i - 1] + (t[i] - t[i - 1]) * v[i - 1] / (v[i - 1] - v[i]));
  if (crossings.size() < 3) fail("{} crossings of the wave: not a coordinate image, or enlarged too much", crossings.size());
  // Over whole periods, so that a mean that is a little off does not count.
  const size_t whole = (crossings.size() - 1) / 2 * 2;
  double guess = 2 * std::numbers::pi * static_cast<double>(whole) / 2 / (crossings[whole] - crossings[0]);
  double low = 0.9 * guess, high = 1.1 * guess;
  for (int round = 0; round < 6; ++round) {  // a grid of 21 that narrows tenfold
    double best = -1;
    for (int k = 0; k <= 20; ++k) {
      const double w = low + (high - low) * k / 20, e = explained(t, v, w);
      if (e > best) best = e, guess = w;
    }
    const double half = (high - low) / 20;
    low = guess - half, high = guess + half;
  }
  return 2 * std::numbers::pi / guess;
}

struct Profiles {
  std::vector<double> down, across;  // means of rows, of columns
};
Profiles profiles(const Tensor& levels, int64_t channel) {
  const auto height = static_cast<size_t>(levels.size(1)), width = static_cast<size_t>(levels.size(2));
  const float* p = levels.const_data_ptr<float>() + static_cast<size_t>(channel) * height * width;
  Profiles out{std::vector<double>(height), std::vector<double>(width)};
  for (size_t y = 0; y < height; ++y)
    for (size_t x = 0; x < width; ++x, ++p) out.down[y] += *p, out.across[x] += *p;
  for (double& v : out.down) v /= static_cast<double>(width);
  for (double& v : out.across) v /= static_cast<double>(height);
  return out;
}

// `ramp`, `wave`: means over the other axis; sample j is at resized pixel factor (j + 1/2). The outer 5 % are left out:
// there the resampling filter is cut off.
RecoveredAxis recover_axis(const std::vector<double>& ramp, const std::vector<double>& wave, double factor) {
  const size_t n = ramp.size(), skip = std::max<size_t>(2, n / 20);
  std::vector<double> t, r, w;
  for (size_t j = skip; j + skip < n; ++j)
    t.push_back(factor * (static_cast<double>(j) + 0.5)), r.push_back(ramp[j]), w.push_back(wave[j]);
  const auto [start, slope] = fit_line(t, r);
  RecoveredAxis axis;
  axis.mirrored = slope < 0;
  axis.resized = kRampSpan / std::abs(slope);
  axis.offset = (axis.mirrored ? kRampLow + kRampSpan - start : start - kRampLow) / std::abs(slope);
  axis.original = axis.resized * kWavePeriod / wave_period(t, w);
  return axis;
}

}  // namespace

Tensor coordinate_image(int64_t height, int64_t width) {
  FEW_CHECK(height >= 64 && width >= 64, "a coordinate image of {} x {}: waves need 64 pixels", height, width);
  const Tensor image = at::empty({3, height, width}, at::kByte);
  uint8_t* r = image.mutable_data_ptr<uint8_t>();
  uint8_t *g = r + height * width, *b = g + height * width;
  struct Along {
    std::vector<float> ramp, wave, dither;
    explicit Along(int64_t n) {
      for (int64_t i = 0; i < n; ++i) {
        const double at = static_cast<double>(i) + 0.5;
        ramp.push_back(static_cast<float>(kRampLow + kRampSpan * at / static_cast<double>(n)));
        wave.push_back(static_cast<float>(60 * std::cos(2 * std::numbers::pi * at / kWavePeriod)));
        dither.push_back(static_cast<float>(std::fmod(0.6180339887 * at, 1.0)));  // as if uniform
      }
    }
  };
  const Along across(width), down(height);
  for (size_t y = 0; y < down.ramp.size(); ++y)
    for (size_t x = 0; x < across.ramp.size(); ++x) {
      *r++ = static_cast<uint8_t>(across.ramp[x] + down.dither[y]);
      *g++ = static_cast<uint8_t>(down.ramp[y] + across.dither[x]);
      *b++ = static_cast<uint8_t>(128.0f + across.wave[x] + down.wave[y]);
    }
  return image;
}

RecoveredFrame recover_frame(const Tensor& pixels, double factor) {
  const Tensor levels = (pixels.scalar_type() == at::kByte ? pixels.to(at::kFloat) : pixels.to(at::kFloat).add(1).mul(127.5)).contiguous();
  const auto red = profiles(levels, 0), green = profiles(levels, 1),
             blue = profiles(levels, 2);
  return {.y = recover_axis(green.down, blue.down, factor),
          .x = recover_axis(red.across, blue.across, factor),
          .height = factor * static_cast<double>(pixels.size(1)),
          .width = factor * static_cast<double>(pixels.size(2))};
}

std::string micro_mistakes(const RecoveredFrame& frame, const MicroConditioning& m) {
  std::string out;
  const auto compare = [&](const char* name, int64_t said, double seen, double tolerance) {
    if (!(std::abs(static_cast<double>(said) - seen) <= tolerance)) out += fmt::format("{} is said to be {}, seen {:.2f}; ", name, said, seen);
  };
  const auto size_tolerance = [](double seen) { return std::max(kSizeTolerance, kSizeShare * seen); };
  compare("original height", m.original_height, frame.y.original, size_tolerance(frame.y.original));
  compare("original width", m.original_width, frame.x.original, size_tolerance(frame.x.original));
  compare("crop top", m.crop_top, frame.y.offset, kCropTolerance);
  compare("crop left", m.crop_left, frame.x.offset, kCropTolerance);
  compare("target height", m.target_height, frame.height, 0);
  compare("target width", m.target_width, frame.width, 0);
  if (m.flipped != frame.x.mirrored) out += fmt::format("flip is said to be {}, seen {}; ", m.flipped, frame.x.mirrored);
  if (frame.y.mirrored) out += "upside down; ";
  return out;
}

std::string micro_mistakes(const Tensor& pixels, const MicroConditioning& m, double factor) {
  return micro_mistakes(recover_frame(pixels, factor), m);
}

}  // namespace fewstep::testing
