#include "datasets/size_summary.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "src/base/error.h"

namespace fewstep {
namespace {

constexpr int64_t kEdges[] = {0,   64,  128,  192,  256, 384,
                              512, 768, 1024, 1536, 2048};  // of the shorter side; open above

struct Ratio {
  int64_t width, height;
};
constexpr Ratio kRatios[] = {{1, 3}, {1, 2}, {9, 16}, {2, 3},  {3, 4}, {4, 5}, {1, 1},
                             {5, 4}, {4, 3}, {3, 2},  {16, 9}, {2, 1}, {3, 1}};

size_t nearest_ratio(const io::ImageSize& size) {
  const double wanted = std::log(static_cast<double>(size.width) / static_cast<double>(size.height));
  size_t best = 0;
  double least = std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < std::size(kRatios); ++i) {
    const double off =
        std::abs(std::log(static_cast<double>(kRatios[i].width) / static_cast<double>(kRatios[i].height)) - wanted);
    if (off < least) least = off, best = i;
  }
  return best;
}

std::string percent(int64_t part, int64_t all) {
  return fmt::format("{:5.1f} %", 100.0 * static_cast<double>(part) / static_cast<double>(all));
}

std::string bars(std::string_view title, const std::vector<SizeBin>& bins, int64_t total) {
  constexpr double kLongest = 40;
  int64_t most = 1;
  for (const SizeBin& bin : bins) most = std::max(most, bin.count);
  std::string out = fmt::format("{}\n", title);
  for (const SizeBin& bin : bins) {
    // A bin that is not empty shows.
    const auto length =
        static_cast<size_t>(std::ceil(kLongest * static_cast<double>(bin.count) / static_cast<double>(most)));
    out += fmt::format("  {:<12} {:>9}  {}  {}\n", bin.label, bin.count, percent(bin.count, total),
                       std::string(length, '#'));
    while (out.ends_with(" \n")) out.erase(out.size() - 2, 1);
  }
  return out;
}

}  // namespace

SizeSummary summarise_sizes(std::span<const io::ProbedImage> images) {
  SizeSummary out;
  std::vector<int64_t> sides(std::size(kEdges)), ratios(std::size(kRatios));
  for (const io::ProbedImage& image : images) {
    if (!image.error.empty()) {
      if (out.unreadable++ == 0) out.first_error = image.error;
      continue;
    }
    const int64_t shorter = std::min(image.size.width, image.size.height);
    ++out.images, out.below_256 += shorter < 256, out.below_512 += shorter < 512;
    ++sides[static_cast<size_t>(std::upper_bound(std::begin(kEdges), std::end(kEdges), shorter) - std::begin(kEdges)) -
            1];
    ++ratios[nearest_ratio(image.size)];
  }
  const auto filled = [](int64_t n) { return n > 0; };
  const auto first = std::find_if(sides.begin(), sides.end(), filled);
  const auto last = std::find_if(sides.rbegin(), sides.rend(), filled).base();
  for (auto it = first; it < last; ++it) {
    const auto i = static_cast<size_t>(it - sides.begin());
    out.shorter_side.push_back({i + 1 < sides.size() ? fmt::format("{} - {}", kEdges[i], kEdges[i + 1] - 1)
                                                     : fmt::format("{} or more", kEdges[i]),
                                *it});
  }
  for (size_t i = 0; i < ratios.size(); ++i)
    if (ratios[i] > 0) out.aspect.push_back({fmt::format("{}:{}", kRatios[i].width, kRatios[i].height), ratios[i]});
  return out;
}

std::string format_sizes(const SizeSummary& s) {
  std::string out;
  if (s.unreadable > 0)
    out += fmt::format("unreadable   {} of {} files, the first: {}\n", s.unreadable, s.images + s.unreadable,
                       s.first_error);
  if (s.images == 0) return out;
  out += bars("shorter side in files (pixels, from the headers)", s.shorter_side, s.images);
  out += bars("aspect in files (width : height, the nearest)", s.aspect, s.images);
  out += fmt::format(
      "lost to a training size (shorter side below it)\n  256 pixels   {:>9}  {}\n  512 pixels   {:>9}  {}\n",
      s.below_256, percent(s.below_256, s.images), s.below_512, percent(s.below_512, s.images));
  return out;
}

}  // namespace fewstep
