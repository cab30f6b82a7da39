#include "src/io/image_sizes.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>

#include "src/base/error.h"

namespace fewstep::io {

std::vector<ProbedImage> probe_image_sizes(const std::vector<std::filesystem::path>& files, int64_t threads) {
  std::vector<ProbedImage> out(files.size());
  std::atomic<size_t> next = 0;
  std::exception_ptr unexpected;
  std::mutex mutex;
  const auto work = [&] {
    try {
      for (size_t i = next++; i < files.size(); i = next++) {
        try {
          out[i].size = read_image_size(files[i]);
        } catch (const DataError& e) {
          out[i].error = e.what();
        }
      }
    } catch (...) {
      const std::lock_guard lock(mutex);
      unexpected = std::current_exception();
    }
  };
  const size_t wanted = threads > 0 ? static_cast<size_t>(threads) : std::max(1u, std::thread::hardware_concurrency());
  {
    std::vector<std::jthread> pool;
    for (size_t t = 1; t < std::min(wanted, files.size()); ++t) pool.emplace_back(work);
    work();
  }
  if (unexpected) std::rethrow_exception(unexpected);
  return out;
}

}  // namespace fewstep::io
