// What sizes a list of image files has, and how many of them a training size would lose: for `fewstep data info`.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "src/io/image_sizes.h"

namespace fewstep {

struct SizeBin {
  std::string label;
  int64_t count = 0;
};
struct SizeSummary {
  int64_t images = 0;  // whose header could be read; the counts below are of these
  int64_t unreadable = 0;
  std::string first_error = {};
  std::vector<SizeBin> shorter_side;     // from the first to the last bin that is not empty
  std::vector<SizeBin> aspect;           // width to height, the nearest (by ratio) of usual ones; empty bins left out
  int64_t below_256 = 0, below_512 = 0;  // shorter side: enlarging them would teach a model blur
};
SizeSummary summarise_sizes(std::span<const io::ProbedImage> images);

// Lines of a table with bars, the longest of 40 characters.
std::string format_sizes(const SizeSummary& summary);

}  // namespace fewstep
