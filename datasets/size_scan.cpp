#include "datasets/size_scan.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <charconv>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "src/base/files.h"
#include "src/base/parallel.h"
#include "src/base/progress.h"
#include "src/base/text.h"

namespace fewstep {
namespace {

namespace fs = std::filesystem;
constexpr size_t kShowProgress = 10000;

struct KnownSize {
  int64_t bytes = 0, time = 0;  // nanoseconds
  io::ImageSize size = {};
};
using KnownSizes = std::map<std::string, KnownSize, std::less<>>;

// A line that cannot be read is a file that is not known.
KnownSizes read_known_sizes(const fs::path& cache) {
  KnownSizes known;
  if (cache.empty() || !fs::exists(cache)) return known;
  for (const std::string& line : split(read_text(cache), '\n')) {
    const char *at = line.data(), *end = at + line.size();
    int64_t numbers[4] = {};
    bool good = true;
    for (int64_t& number : numbers) {
      const auto [next, error] = std::from_chars(at, end, number);
      good = good && error == std::errc() && next < end && *next == ' ';
      if (!good) break;
      at = next + 1;
    }
    if (good && numbers[2] > 0 && numbers[3] > 0)
      known[std::string(at, end)] = {numbers[0], numbers[1], {.width = numbers[2], .height = numbers[3]}};
  }
  return known;
}

void write_known_sizes(const fs::path& cache, const KnownSizes& known) {
  std::string text;
  for (const auto& [path, k] : known)
    if (path.find('\n') == std::string::npos)
      text += fmt::format("{} {} {} {} {}\n", k.bytes, k.time, k.size.width, k.size.height, path);
  if (cache.has_parent_path()) make_directories(cache.parent_path());
  write_text_atomic(cache, text);
}

std::optional<KnownSize> file_state(const std::string& path) {
  struct stat s {};
  if (::stat(path.c_str(), &s) != 0) return {};
  return KnownSize{static_cast<int64_t>(s.st_size), static_cast<int64_t>(s.st_mtim.tv_sec) * 1000000000 + s.st_mtim.tv_nsec, {}};
}

// One file: what is known of it, or its header. `state`: as it is now, with the size; empty when unreadable.
io::ProbedImage probe_file(const fs::path& file, const KnownSizes& known, bool caching, std::optional<KnownSize>& state) {
  if (caching) {
    const std::string path = file.string();
    state = file_state(path);
    const auto found = known.find(path);
    if (state && found != known.end() && found->second.bytes == state->bytes && found->second.time == state->time)
      return {.size = found->second.size};
  }
  const io::ProbedImage image = io::probe_image(file);
  if (!image.error.empty())
    state.reset();
  else if (state)
    state->size = image.size;
  return image;
}

}  // namespace

std::vector<io::ProbedImage> scan_image_sizes(std::span<const fs::path> files, const fs::path& cache, int64_t threads) {
  KnownSizes known = read_known_sizes(cache);
  std::vector<io::ProbedImage> out(files.size());
  std::vector<std::optional<KnownSize>> states(files.size());
  std::unique_ptr<Progress> progress;
  if (files.size() >= kShowProgress) progress = std::make_unique<Progress>("image sizes", static_cast<int64_t>(files.size()));
  std::mutex mutex;
  parallel_for(files.size(), threads, [&](size_t i) {
    out[i] = probe_file(files[i], known, !cache.empty(), states[i]);
    if (!progress || i % 1000 != 0) return;
    const std::lock_guard lock(mutex);
    progress->update(static_cast<int64_t>(i));
  });
  if (progress) progress->finish();
  bool learned = false;
  for (size_t i = 0; i < files.size() && !cache.empty(); ++i) {
    if (!states[i] || states[i]->size.width == 0) continue;
    known[files[i].string()] = *states[i];
    learned = true;
  }
  if (learned) write_known_sizes(cache, known);
  return out;
}

}  // namespace fewstep
