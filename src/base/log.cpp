#include "src/base/log.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <ctime>
#include <string>

#include "src/base/error.h"
#include "src/base/progress.h"
#include "src/base/text.h"

namespace fewstep::log {
namespace {

std::atomic<Level> g_level{Level::info};
std::atomic<int> g_rank{0}, g_world_size{1};
constexpr std::array<const char*, 4> kNames = {"debug", "info", "warning", "error"};

std::string clock_time() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  localtime_r(&now, &parts);
  return fmt::format("{:02}:{:02}:{:02}", parts.tm_hour, parts.tm_min, parts.tm_sec);
}

}  // namespace

void set_level(Level l) { g_level = l; }

Level level() {
  const Level chosen = g_level;
  return g_rank != 0 && chosen == Level::info ? Level::warning : chosen;
}

Level parse_level(std::string_view name) {
  for (size_t i = 0; i < kNames.size(); ++i)
    if (name == kNames[i]) return static_cast<Level>(i);
  fail<ConfigError>("--log: {}", not_one_of(name, std::vector<std::string>(kNames.begin(), kNames.end())));
}

void set_rank(int rank, int world_size) {
  g_rank = rank;
  g_world_size = world_size;
}

int rank() { return g_rank; }

void write(Level l, std::string_view message) {
  if (l < level()) return;
  Progress::interrupt_line();
  std::string line = clock_time();
  if (g_world_size > 1 && (g_rank != 0 || l != Level::info)) line += fmt::format(" [rank {}]", g_rank.load());
  if (l != Level::info) line += fmt::format(" {}:", kNames[static_cast<size_t>(l)]);
  line += fmt::format(" {}\n", message);
  // One call a line: lines of several threads and processes do not mix. A closed stderr is nobody's problem.
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace fewstep::log
