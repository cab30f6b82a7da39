// Archives by libarchive: tar (also compressed) and zip, read from front to back; zip written without compression.
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace fewstep::io {

bool is_archive_name(const std::filesystem::path& path);  // .tar .tar.gz .tgz .tar.xz .tar.zst .zip

// One pass over the regular files, from front to back. Errors as read_archive's.
class ArchiveReader {
 public:
  explicit ArchiveReader(const std::filesystem::path& path);
  ~ArchiveReader();
  ArchiveReader(const ArchiveReader&) = delete;
  ArchiveReader& operator=(const ArchiveReader&) = delete;
  bool next(std::string& name);  // false at the end
  std::string contents();        // of the file `next` came to; at most once each

 private:
  struct State;
  std::unique_ptr<State> state_;
};
// Calls `visit(name, bytes)` for every regular file in the archive's own order; stops when it returns false. DataError
// naming the path and libarchive's reason; also for an entry larger than 1 GiB.
void read_archive(const std::filesystem::path& path,
                  const std::function<bool(const std::string& name, std::string bytes)>& visit);
// The names alone, in the archive's order.
std::vector<std::string> archive_names(const std::filesystem::path& path);
// Atomic. Entries have no time, so equal contents make equal files.
void write_zip(const std::filesystem::path& path, const std::vector<std::pair<std::string, std::string>>& entries);

}  // namespace fewstep::io
