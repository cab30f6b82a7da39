// Files: whole reads and writes with errors that name the path, and the atomic replacement every saved file goes through.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace fewstep {

std::string read_text(const std::filesystem::path& path);                        // DataError when unreadable
// Writes to a temporary file beside `path`, fsyncs, renames: readers see the old file or the new one, never a part.
// DataError names the path and the reason (disk full, read-only, no permission); the temporary file is removed.
void write_text_atomic(const std::filesystem::path& path, std::string_view text);
// A file being written; commit() makes it durable, the destructor removes what was not committed. A process that meets a
// limit on file sizes (ulimit -f) is killed by SIGXFSZ unless it ignores it: signals::install() does, then this is an error.
class FileWriter {
 public:
  explicit FileWriter(const std::filesystem::path& path);
  ~FileWriter();
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;
  void write(const void* data, size_t bytes);
  void commit();  // fsync, close, rename to `path`, fsync of the folder

 private:
  std::filesystem::path path_, temporary_;
  int descriptor_ = -1;
};
void sync_directory(const std::filesystem::path& path);
void make_directories(const std::filesystem::path& path);                        // DataError when not possible

// A read-only memory map of a whole file.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);  // DataError when unreadable or empty
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// An exclusive advisory lock (flock) for as long as the object lives. DataError names the holder's process id.
class FileLock {
 public:
  explicit FileLock(const std::filesystem::path& path);
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  int descriptor_ = -1;
};

}  // namespace fewstep
