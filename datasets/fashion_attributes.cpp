#include "datasets/fashion_attributes.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/tensor/ops.h"

namespace fewstep {
namespace {

constexpr std::array<std::string_view, kFashionClasses> kNames = {
    "t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"};
constexpr int64_t kBackground =
    32;  // grey levels below belong to the ground: the photographs' is 0, a generator's is not
constexpr int64_t kFewInterior = 10;

// sqrt(12 variance + 1) of positions weighted by `weight`: a bar of n equal cells has variance (n^2 - 1) / 12.
double extent(std::span<const int64_t> weight) {
  int64_t n = 0, first = 0, second = 0;  // below 2^53 for any picture up to 1024 pixels
  for (size_t i = 0; i < weight.size(); ++i) {
    const int64_t position = static_cast<int64_t>(i);
    n += weight[i];
    first += weight[i] * position;
    second += weight[i] * position * position;
  }
  if (n == 0) return 0;
  const double mean = static_cast<double>(first) / static_cast<double>(n);
  return std::sqrt(12 * (static_cast<double>(second) / static_cast<double>(n) - mean * mean) + 1);
}

// Mean over the garment's interior: pixels at least half as bright as the picture's self-weighted mean, whose four
// neighbours are too. Edges are half-covered pixels, and blur or a decoder changes them first. Garments of thin straps
// have hardly any interior: there the edges count.
double interior_mean(std::span<const uint8_t> pixels, int64_t height, int64_t width) {
  int64_t sum = 0, squares = 0;
  for (uint8_t v : pixels) {
    const int64_t kept = v >= kBackground ? v : 0;
    sum += kept;
    squares += kept * kept;
  }
  if (sum == 0) return 0;
  // v >= squares / sum / 2, in integers.
  const int64_t level = std::max(kBackground, (squares + 2 * sum - 1) / (2 * sum));
  const size_t stride = static_cast<size_t>(width) + 2;  // a border of ground saves the tests at the edges
  std::vector<uint8_t> mask(stride * (static_cast<size_t>(height) + 2));
  for (int64_t y = 0; y < height; ++y)
    for (int64_t x = 0; x < width; ++x)
      mask[static_cast<size_t>(y + 1) * stride + static_cast<size_t>(x + 1)] =
          pixels[static_cast<size_t>(y * width + x)] >= level;
  int64_t all = 0, all_sum = 0, inner = 0, inner_sum = 0;
  for (int64_t y = 0; y < height; ++y) {
    const uint8_t* value = pixels.data() + y * width;
    const uint8_t* m = mask.data() + static_cast<size_t>(y + 1) * stride + 1;
    const uint8_t *above = m - stride, *below = m + stride;
    for (int64_t x = 0; x < width; ++x) {
      const int32_t in = m[x], deep = m[x] & above[x] & below[x] & m[x - 1] & m[x + 1];
      all += in;
      all_sum += in * value[x];
      inner += deep;
      inner_sum += deep * value[x];
    }
  }
  return inner >= kFewInterior ? static_cast<double>(inner_sum) / static_cast<double>(inner)
                               : static_cast<double>(all_sum) / static_cast<double>(all);
}

// The value at `numerator / denominator` of the sorted order (nearest rank): always a value that occurs.
double quantile(std::vector<double> values, size_t numerator, size_t denominator) {
  if (values.empty()) return 0;
  const auto at = values.begin() + static_cast<std::ptrdiff_t>(values.size() * numerator / denominator);
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

}  // namespace

std::span<const std::string_view> fashion_class_names() { return kNames; }

std::span<const AttributeKind> fashion_attribute_kinds() {
  static const std::array<AttributeKind, 3> kinds = {
      AttributeKind{"tone", {"dark", "mid", "bright"}},
      AttributeKind{"height", {"short", "long"}},
      AttributeKind{"width", {"narrow", "wide"}},
  };
  return kinds;
}

Measurement measure_garment(std::span<const uint8_t> pixels, int64_t height, int64_t width) {
  FEW_CHECK(static_cast<int64_t>(pixels.size()) == height * width, "{} pixels for {} x {}", pixels.size(), height,
            width);
  std::vector<int64_t> rows(static_cast<size_t>(height)), columns(static_cast<size_t>(width));
  const uint8_t* v = pixels.data();
  for (int64_t& row : rows)
    for (int64_t& column : columns) {
      const int64_t kept = *v >= kBackground ? *v : 0;
      ++v;
      row += kept;
      column += kept;
    }
  return {interior_mean(pixels, height, width), extent(rows), extent(columns)};
}

AttributeThresholds find_thresholds(std::span<const Measurement> measured, std::span<const uint8_t> labels) {
  FEW_CHECK(measured.size() == labels.size(), "{} measurements, {} labels", measured.size(), labels.size());
  std::vector<double> tones;
  std::array<std::vector<double>, kFashionClasses> heights, widths;
  for (size_t i = 0; i < measured.size(); ++i) {
    tones.push_back(measured[i].tone);
    heights.at(labels[i]).push_back(measured[i].height);
    widths.at(labels[i]).push_back(measured[i].width);
  }
  AttributeThresholds thresholds;
  thresholds.tone_dark = quantile(tones, 1, 3);
  thresholds.tone_bright = quantile(std::move(tones), 2, 3);
  for (size_t c = 0; c < kFashionClasses; ++c) {
    thresholds.height[c] = quantile(std::move(heights[c]), 1, 2);
    thresholds.width[c] = quantile(std::move(widths[c]), 1, 2);
  }
  return thresholds;
}

Attributes name_attributes(const Measurement& m, int64_t label, const AttributeThresholds& t) {
  if (label < 0 || label >= kFashionClasses) fail("label {} is not a Fashion-MNIST class (0 to 9)", label);
  const size_t c = static_cast<size_t>(label);
  return {{"tone", m.tone < t.tone_dark     ? "dark"
                   : m.tone < t.tone_bright ? "mid"
                                            : "bright"},
          {"height", m.height < t.height[c] ? "short" : "long"},
          {"width", m.width < t.width[c] ? "narrow" : "wide"}};
}

Attributes measure_attributes(const Tensor& image, int64_t label, const AttributeThresholds& thresholds) {
  if (image.scalar_type() != at::kByte || image.dim() < 2 || image.dim() > 3)
    fail("measure_attributes: expected uint8 [C, H, W], got {} of {} dimensions", c10::toString(image.scalar_type()),
         image.dim());
  Tensor grey = image.cpu();
  if (grey.dim() == 3) {
    // Channels' mean, rounded half up, in integers.
    const int64_t channels = grey.size(0);
    grey = channels == 1 ? grey[0]
                         : (grey.sum(0, false, at::kLong) * 2 + channels).floor_divide(2 * channels).to(at::kByte);
  }
  grey = grey.contiguous();
  const std::span<const uint8_t> pixels(grey.const_data_ptr<uint8_t>(), static_cast<size_t>(grey.numel()));
  return name_attributes(measure_garment(pixels, grey.size(0), grey.size(1)), label, thresholds);
}

Json to_json(const AttributeThresholds& t) {
  return {{"kind", "fashion_attributes"}, {"version", 1},
          {"tone_dark", t.tone_dark},     {"tone_bright", t.tone_bright},
          {"height_median", t.height},    {"width_median", t.width}};
}

AttributeThresholds thresholds_from_json(const Json& json, std::string_view origin) {
  try {
    if (json.at("kind") != "fashion_attributes" || json.at("version") != 1)
      fail<DataError>("{}: kind {} version {}, expected \"fashion_attributes\" version 1", origin,
                      json.at("kind").dump(), json.at("version").dump());
    AttributeThresholds t;
    t.tone_dark = json.at("tone_dark").get<double>();
    t.tone_bright = json.at("tone_bright").get<double>();
    for (const auto& [key, values] : {std::pair{"height_median", &t.height}, std::pair{"width_median", &t.width}}) {
      const auto read = json.at(key).get<std::vector<double>>();
      if (read.size() != values->size())
        fail<DataError>("{}: {} has {} values, expected {}", origin, key, read.size(), values->size());
      std::copy(read.begin(), read.end(), values->begin());
    }
    return t;
  } catch (const nlohmann::json::exception& e) {
    fail<DataError>("{}: not attribute thresholds: {}", origin, e.what());
  }
}

}  // namespace fewstep
