// Sizes of many image files from their headers, in all cores, remembered between runs.
#pragma once
#include <filesystem>
#include <span>
#include <vector>

#include "src/io/image_sizes.h"

namespace fewstep {

// In order; unreadable files carry their error. `cache` (empty: none): a text file with one line a known file, `bytes
// mtime_ns width height path`; a file whose bytes or time differ is read anew. Written when something new was learned;
// files of other lists stay in it. `threads` 0: one a core. Shows progress where there are many.
std::vector<io::ProbedImage> scan_image_sizes(std::span<const std::filesystem::path> files,
                                              const std::filesystem::path& cache = {}, int64_t threads = 0);

}  // namespace fewstep
