// Log lines on stderr: one event a line, rank 0 only unless said. Numbers of a run go to metrics.jsonl, not here.
#pragma once
#include <fmt/format.h>

#include <string_view>
#include <utility>

namespace fewstep::log {

enum class Level { debug, info, warning, error };

void set_level(Level level);
Level level();
Level parse_level(std::string_view name);  // ConfigError with the known names
// Ranks other than 0 print warnings and errors only (everything at debug), each line prefixed with "[rank r]".
void set_rank(int rank, int world_size);
int rank();
void write(Level level, std::string_view message);

template <class... Args>
void debug(fmt::format_string<Args...> f, Args&&... args) {
  if (level() <= Level::debug) write(Level::debug, fmt::format(f, std::forward<Args>(args)...));
}
template <class... Args>
void info(fmt::format_string<Args...> f, Args&&... args) {
  if (level() <= Level::info) write(Level::info, fmt::format(f, std::forward<Args>(args)...));
}
template <class... Args>
void warn(fmt::format_string<Args...> f, Args&&... args) {
  write(Level::warning, fmt::format(f, std::forward<Args>(args)...));
}
template <class... Args>
void error(fmt::format_string<Args...> f, Args&&... args) {
  write(Level::error, fmt::format(f, std::forward<Args>(args)...));
}

}  // namespace fewstep::log
