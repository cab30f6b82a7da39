// The sizes of many image files, from their headers alone.
#pragma once
#include <filesystem>
#include <string>
#include <vector>

#include "src/io/image.h"

namespace fewstep::io {

struct ProbedImage {
  ImageSize size;          // as read_image would give it, after EXIF orientation
  std::string error = {};  // "path: reason" of a file that cannot be read; else empty
};
ProbedImage probe_image(const std::filesystem::path& file);
// read_image_size of every file in order, in `threads` threads (0: one a core). Unreadable files do not stop the
// others.
std::vector<ProbedImage> probe_image_sizes(const std::vector<std::filesystem::path>& files, int64_t threads = 0);

}  // namespace fewstep::io
