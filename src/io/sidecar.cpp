// SHA-256 sidecars: libhdf5 may crash on corrupt metadata, so a file is proved whole before it is opened.
#include <sys/stat.h>

#include <cerrno>
#include <system_error>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/hash.h"
#include "src/base/log.h"
#include "src/base/text.h"
#include "src/io/hdf5.h"

namespace fewstep::io {
namespace fs = std::filesystem;
namespace {

fs::path with_suffix(const fs::path& path, const char* suffix) { return path.string() + suffix; }

// What must be unchanged for an earlier verification to hold.
std::string identity(const fs::path& path, std::string_view hash) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0)
    fail<DataError>("{}: cannot be read: {}", path.string(), std::generic_category().message(errno));
  return fmt::format("{} {} {}.{:09}\n", hash, info.st_size, info.st_mtim.tv_sec, info.st_mtim.tv_nsec);
}

void remember(const fs::path& path, const std::string& text) {
  try {
    write_text_atomic(with_suffix(path, ".sha256.ok"), text);
  } catch (const DataError&) {  // a read-only folder: verified again next time
  }
}

}  // namespace

void write_sidecar(const fs::path& path) {
  const std::string hash = sha256_file(path.string());
  write_text_atomic(with_suffix(path, ".sha256"), fmt::format("{}  {}\n", hash, path.filename().string()));
  remember(path, identity(path, hash));
}

void verify_sidecar(const fs::path& path) {
  const fs::path sidecar = with_suffix(path, ".sha256"), known = with_suffix(path, ".sha256.ok");
  std::error_code code;
  if (!fs::exists(path, code)) fail<DataError>("{}: no such file", path.string());
  if (!fs::exists(sidecar, code)) {
    log::warn("{}: no sidecar {}, read unverified (sha256sum {} > {} makes one)", path.string(),
              sidecar.filename().string(), path.filename().string(), sidecar.filename().string());
    return;
  }
  const std::string line = read_text(sidecar), hash = to_lower(line.substr(0, line.find_first_of(" \n")));
  if (hash.size() != 64 || hash.find_first_not_of("0123456789abcdef") != hash.npos)
    fail<DataError>("{}: does not begin with a SHA-256 of 64 hex digits", sidecar.string());
  const std::string now = identity(path, hash);
  if (fs::exists(known, code) && read_text(known) == now) return;
  const std::string found = sha256_file(path.string());
  if (found != hash)
    fail<DataError>("{}: SHA-256 is {}, its sidecar says {}: the file is damaged or incomplete (copy or make it again)",
                    path.string(), found, hash);
  remember(path, now);
}

}  // namespace fewstep::io
