#include "datasets/buckets.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "src/base/error.h"
#include "src/base/text.h"

namespace fewstep {
namespace {

constexpr config::Choice kBucketKinds[] = {{"none", 0}, {"sdxl", 1}, {"generated", 2}, {"list", 3}};
constexpr config::Choice kSmallBucketChoices[] = {{"error", 0}, {"merge", 1}, {"drop", 2}};
constexpr double kLeastArea = 0.9;  // of base^2: the paper's table lies in 0.902 ... 1.000

int64_t parse_bucket_side(std::string_view text, const std::string& whole) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 1 || value > 16384)
    fail<ConfigError>("data.buckets.sizes: '{}' is not HEIGHTxWIDTH, as in 768x1344", whole);
  return value;
}

std::vector<BucketSize> parse_buckets(const std::vector<std::string>& sizes) {
  if (sizes.empty()) fail<ConfigError>("data.buckets.sizes is empty: kind 'list' needs sizes as in [1024x1024, 768x1344]");
  std::vector<BucketSize> table;
  for (const std::string& text : sizes) {
    const auto parts = split(text, 'x');
    if (parts.size() != 2) fail<ConfigError>("data.buckets.sizes: '{}' is not HEIGHTxWIDTH, as in 768x1344", text);
    const BucketSize size{parse_bucket_side(parts[0], text), parse_bucket_side(parts[1], text)};
    if (std::find(table.begin(), table.end(), size) != table.end())
      fail<ConfigError>("data.buckets.sizes: {} is given twice", text);
    table.push_back(size);
  }
  return table;
}

double log_aspect(BucketSize size) { return std::log(static_cast<double>(size.height) / static_cast<double>(size.width)); }

}  // namespace

std::string bucket_text(BucketSize size) { return fmt::format("{}x{}", size.height, size.width); }

const std::vector<BucketSize>& sdxl_buckets() {
  static const std::vector<BucketSize> table = {
      {512, 2048},  {512, 1984},  {512, 1920},  {512, 1856},  {576, 1792},  {576, 1728},  {576, 1664},  {640, 1600},
      {640, 1536},  {704, 1472},  {704, 1408},  {704, 1344},  {768, 1344},  {768, 1280},  {832, 1216},  {832, 1152},
      {896, 1152},  {896, 1088},  {960, 1088},  {960, 1024},  {1024, 1024}, {1024, 960},  {1088, 960},  {1088, 896},
      {1152, 896},  {1152, 832},  {1216, 832},  {1280, 768},  {1344, 768},  {1408, 704},  {1472, 704},  {1536, 640},
      {1600, 640},  {1664, 576},  {1728, 576},  {1792, 576},  {1856, 512},  {1920, 512},  {1984, 512},  {2048, 512}};
  return table;
}

std::vector<BucketSize> make_buckets(int64_t base, int64_t step, int64_t min_side, int64_t max_side, double max_aspect) {
  if (base < 1 || step < 1 || min_side < 1 || max_side < min_side || max_aspect < 1)
    fail<ConfigError>("data.buckets: base {}, step {}, sides {} to {}, aspect up to {} make no table", base, step, min_side,
                      max_side, max_aspect);
  const int64_t first = (min_side + step - 1) / step * step, area = base * base;
  std::vector<BucketSize> table;
  const auto add = [&](BucketSize size) {
    const auto [low, high] = std::minmax(size.height, size.width);
    const bool slim = static_cast<double>(high) > max_aspect * static_cast<double>(low);
    if (!slim && std::find(table.begin(), table.end(), size) == table.end()) table.push_back(size);
  };
  for (int64_t height = first; height <= max_side; height += step) {
    const int64_t widest = std::min(area / height, max_side) / step * step;
    for (int64_t width = widest; width >= first; width -= step) {
      const bool large = static_cast<double>(height * width) >= kLeastArea * static_cast<double>(area);
      if (width < widest && !large) break;
      add({height, width});
      add({width, height});
    }
  }
  if (table.empty())
    fail<ConfigError>("data.buckets: no multiples of {} in {} to {} have an area of at most {} x {}", step, min_side, max_side,
                      base, base);
  std::sort(table.begin(), table.end(), [](BucketSize a, BucketSize b) {
    return a.height != b.height ? a.height < b.height : a.width > b.width;
  });
  return table;
}

double aspect_distance(BucketSize a, BucketSize b) { return std::abs(log_aspect(a) - log_aspect(b)); }

int64_t nearest_bucket(int64_t height, int64_t width, std::span<const BucketSize> buckets) {
  FEW_CHECK(height > 0 && width > 0 && !buckets.empty(), "bucket of {} x {} among {}", height, width, buckets.size());
  size_t best = 0;
  for (size_t b = 1; b < buckets.size(); ++b)
    if (aspect_distance({height, width}, buckets[b]) < aspect_distance({height, width}, buckets[best])) best = b;
  return static_cast<int64_t>(best);
}

std::vector<BucketSize> BucketConfig::table() const {
  switch (kind) {
    case BucketKind::none:
      return {};
    case BucketKind::sdxl:
      return sdxl_buckets();
    case BucketKind::generated:
      return make_buckets(base, step, min_side, max_side, max_aspect);
    case BucketKind::list:
      return parse_buckets(sizes);
  }
  fail("unknown kind of buckets {}", static_cast<int>(kind));
}

void describe(config::Visitor& v, BucketConfig& c) {
  v.field("kind", c.kind, "none: squares of image_size; sdxl: the paper's 40 around 1024x1024; generated; list", kBucketKinds);
  v.field("base", c.base, "generated: areas of at most base x base", config::Range{8, 8192});
  v.field("step", c.step, "generated: sides are multiples of it (the autoencoder's factor times the network's)",
          config::Range{1, 1024});
  v.field("min_side", c.min_side, "generated: shortest side", config::Range{1, 16384});
  v.field("max_side", c.max_side, "generated: longest side", config::Range{1, 16384});
  v.field("max_aspect", c.max_aspect, "generated: longest side over shortest", config::kAtLeastOne);
  v.field("sizes", c.sizes, "list: HEIGHTxWIDTH each, as in [1024x1024, 768x1344]");
  v.field("small_buckets", c.small_buckets,
          "buckets with fewer images than a global batch: error, merge into the nearest aspect, or drop their images",
          kSmallBucketChoices);
  v.check(c.min_side <= c.max_side, "min_side", "min_side must not be above max_side");
}

}  // namespace fewstep
