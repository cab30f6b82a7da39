#include "src/io/image_sizes.h"

#include "src/base/error.h"
#include "src/base/parallel.h"

namespace fewstep::io {

ProbedImage probe_image(const std::filesystem::path& file) {
  ProbedImage image;
  try {
    image.size = read_image_size(file);
  } catch (const DataError& e) {
    image.error = e.what();
  }
  return image;
}

std::vector<ProbedImage> probe_image_sizes(const std::vector<std::filesystem::path>& files, int64_t threads) {
  std::vector<ProbedImage> out(files.size());
  parallel_for(files.size(), threads, [&](size_t i) { out[i] = probe_image(files[i]); });
  return out;
}

}  // namespace fewstep::io
