#include "src/base/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>

#include "src/base/log.h"
#include "src/base/text.h"

namespace fewstep {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kTerminalInterval = std::chrono::milliseconds(100);
constexpr auto kPlainInterval = std::chrono::seconds(10);

std::atomic<bool> g_line_open{false};  // a bar stands on the terminal's current line

void put(std::string_view text) { [[maybe_unused]] const ssize_t n = ::write(STDERR_FILENO, text.data(), text.size()); }

size_t terminal_width() {
  winsize size{};
  return ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 20 ? size.ws_col : 80;
}

}  // namespace

Progress::Progress(std::string label, int64_t total, int64_t done)
    : label_(std::move(label)),
      total_(std::max<int64_t>(total, 0)),
      first_(done),
      done_(done),
      start_(Clock::now()),
      drawn_(start_),
      terminal_(::isatty(STDERR_FILENO) == 1) {}

Progress::~Progress() {
  if (terminal_) interrupt_line();
}

void Progress::update(int64_t done, std::string_view note) {
  done_ = done;
  const auto now = Clock::now();
  if (now - drawn_ < (terminal_ ? Clock::duration(kTerminalInterval) : Clock::duration(kPlainInterval))) return;
  drawn_ = now;
  draw(note, false);
}

void Progress::finish(std::string_view note) {
  if (finished_) return;
  finished_ = true;
  done_ = std::max(done_, total_);
  draw(note, true);
}

void Progress::interrupt_line() {
  if (g_line_open.exchange(false)) put("\n");
}

void Progress::draw(std::string_view note, bool last) {
  if (log::rank() != 0 || log::level() > log::Level::info) return;
  const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
  const double fraction =
      total_ > 0 ? std::clamp(static_cast<double>(done_) / static_cast<double>(total_), 0.0, 1.0) : 1.0;
  const double rate = seconds > 0 ? static_cast<double>(done_ - first_) / seconds : 0;
  const std::string timing =
      last ? human_duration(seconds)
           : fmt::format(
                 "{} elapsed, {} left", human_duration(seconds),
                 rate > 0 ? human_duration(static_cast<double>(std::max<int64_t>(total_ - done_, 0)) / rate) : "?");
  const std::string tail = fmt::format("{}/{}  {}{}{}", done_, total_, timing, note.empty() ? "" : "  ", note);
  if (!terminal_) return log::write(log::Level::info, fmt::format("{}  {:.0f}%  {}", label_, 100 * fraction, tail));
  constexpr size_t kBar = 24;
  const auto filled = static_cast<size_t>(fraction * kBar);
  std::string line = fmt::format("{} [{}{}] {:3.0f}%  {}", label_, std::string(filled, '='),
                                 std::string(kBar - filled, ' '), 100 * fraction, tail);
  line.resize(std::min(line.size(), terminal_width() - 1));  // a wrapped line could not be redrawn
  put("\r\x1b[K" + line);
  g_line_open = true;
  if (last) interrupt_line();
}

}  // namespace fewstep
