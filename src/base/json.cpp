#include "src/base/json.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <nlohmann/json.hpp>
#include <string>
#include <system_error>

#include "src/base/error.h"
#include "src/base/files.h"

namespace fewstep {

Json read_json(const std::filesystem::path& path) {
  const std::string text = read_text(path);
  try {
    return Json::parse(text);
  } catch (const nlohmann::json::parse_error& e) {
    fail<DataError>("{}: not valid JSON at byte {}: {}", path.string(), e.byte, e.what());
  }
}

// Text that is not UTF-8 (a file name, a caption) is written with replacement characters instead of failing the run.
static std::string dump(const Json& value, int indent) {
  return value.dump(indent, ' ', false, Json::error_handler_t::replace) + "\n";
}

void write_json(const std::filesystem::path& path, const Json& value) { write_text_atomic(path, dump(value, 2)); }

void append_jsonl(const std::filesystem::path& path, const Json& value) {
  const std::string line = dump(value, -1);
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (file < 0) fail<DataError>("{}: cannot be written: {}", path.string(), std::generic_category().message(errno));
  struct stat before {};
  const bool known = ::fstat(file, &before) == 0;
  errno = 0;
  const ssize_t written = ::write(file, line.data(), line.size());
  const int code = written < 0 ? errno : ENOSPC;  // a short write to a file: the disk filled up on the way
  if (written != static_cast<ssize_t>(line.size())) {
    // A part of a line would make the whole file unreadable.
    [[maybe_unused]] const int cut = known && written > 0 ? ::ftruncate(file, before.st_size) : 0;
    ::close(file);
    fail<DataError>("{}: cannot be written: {}", path.string(), std::generic_category().message(code));
  }
  ::close(file);
}

}  // namespace fewstep
