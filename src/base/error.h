// The error kinds of fewstep. Each knows the exit code of the process; only main catches them.
#pragma once
#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace fewstep {

// A failed check or anything unexpected: exit code 1.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message, int exit_code = 1) : std::runtime_error(message), exit_code_(exit_code) {}
  int exit_code() const { return exit_code_; }

 private:
  int exit_code_;
};

// The user's config file, command line, or a combination of settings: exit code 2.
struct ConfigError : Error {
  explicit ConfigError(const std::string& m) : Error(m, 2) {}
};
// A file or data set: unreadable, corrupt, unwritable, full, locked: exit code 3.
struct DataError : Error {
  explicit DataError(const std::string& m) : Error(m, 3) {}
};
// A loss, gradient or statistic that is not finite: exit code 4.
struct NumericError : Error {
  explicit NumericError(const std::string& m) : Error(m, 4) {}
};
// A rank died, hung, or the group could not be formed: exit code 5.
struct DistributedError : Error {
  explicit DistributedError(const std::string& m) : Error(m, 5) {}
};
// SIGINT or SIGTERM was honoured and the state saved: exit code 130.
struct Interrupted : Error {
  explicit Interrupted(const std::string& m) : Error(m, 130) {}
};

// throw E(fmt::format(...)) in one word: fail<DataError>("{}: truncated at byte {}", path, n).
template <class E = Error, class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw E(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace fewstep

// An internal invariant; the message says both values. User-facing problems use fail<ConfigError|DataError>.
#define FEW_CHECK(condition, ...)                                                                      \
  do {                                                                                                 \
    if (!(condition)) [[unlikely]]                                                                     \
      throw ::fewstep::Error(::fmt::format("{}:{}: {}", __FILE__, __LINE__, ::fmt::format(__VA_ARGS__))); \
  } while (false)
