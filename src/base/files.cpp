#include "src/base/files.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <system_error>
#include <utility>

#include "src/base/error.h"
#include "src/base/text.h"

namespace fewstep {
namespace fs = std::filesystem;
namespace {

// The system's words, and what to do where the words do not say it.
std::string reason(int code) {
  const std::string words = std::generic_category().message(code);
  switch (code) {
    case ENOSPC:
      return words + " (the disk is full: free some space or choose another folder)";
    case EDQUOT:
      return words + " (your quota on this disk is used up)";
    case EFBIG:
      return words + " (limit on the size of a file: see ulimit -f)";
    case EACCES:
    case EPERM:
      return words + " (check the owner and mode of the file and its folder)";
    case EROFS:
      return words + " (choose a folder on a writable disk)";
    case EMFILE:
      return words + " (see ulimit -n)";
    default:
      return words;
  }
}

// Owns a descriptor until released; errors on the way close it.
class Descriptor {
 public:
  Descriptor(const fs::path& path, int flags, const char* doing)
      : value_(::open(path.c_str(), flags | O_CLOEXEC, 0666)) {
    if (value_ < 0) fail<DataError>("{}: cannot be {}: {}", path.string(), doing, reason(errno));
  }
  ~Descriptor() {
    if (value_ >= 0) ::close(value_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return value_; }
  int release() { return std::exchange(value_, -1); }

 private:
  int value_;
};

fs::path folder_of(const fs::path& path) { return path.has_parent_path() ? path.parent_path() : fs::path("."); }

}  // namespace

std::string read_text(const fs::path& path) {
  Descriptor file(path, O_RDONLY, "read");
  std::string text;
  struct stat info {};
  if (::fstat(file.get(), &info) == 0 && info.st_size > 0) text.reserve(static_cast<size_t>(info.st_size));
  char buffer[1 << 16];
  for (;;) {
    const ssize_t n = ::read(file.get(), buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail<DataError>("{}: cannot be read: {}", path.string(), reason(errno));
    if (n == 0) return text;
    text.append(buffer, static_cast<size_t>(n));
  }
}

void write_text_atomic(const fs::path& path, std::string_view text) {
  FileWriter file(path);
  file.write(text.data(), text.size());
  file.commit();
}

FileWriter::FileWriter(const fs::path& path) : path_(path) {
  static std::atomic<unsigned> counter{0};
  temporary_ = folder_of(path) / fmt::format(".{}.tmp-{}-{}", path.filename().string(), ::getpid(), counter++);
  descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (descriptor_ < 0) fail<DataError>("{}: cannot be written: {}", path_.string(), reason(errno));
}

FileWriter::~FileWriter() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void FileWriter::write(const void* data, size_t bytes) {
  FEW_CHECK(descriptor_ >= 0, "{}: write after commit", path_.string());
  const char* position = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::write(descriptor_, position, std::min<size_t>(bytes, size_t{1} << 30));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail<DataError>("{}: cannot be written: {}", path_.string(), reason(errno));
    position += n;
    bytes -= static_cast<size_t>(n);
  }
}

void FileWriter::commit() {
  FEW_CHECK(descriptor_ >= 0, "{}: committed twice", path_.string());
  const auto check = [&](int result) {
    if (result != 0) fail<DataError>("{}: cannot be written: {}", path_.string(), reason(errno));
  };
  check(::fsync(descriptor_));
  check(::close(std::exchange(descriptor_, -1)));  // network file systems report a full disk only here
  check(::rename(temporary_.c_str(), path_.c_str()));
  temporary_.clear();
  sync_directory(folder_of(path_));
}

void sync_directory(const fs::path& path) {
  Descriptor folder(path, O_RDONLY | O_DIRECTORY, "synchronised");
  // EINVAL: the file system has no such thing (some network and FUSE ones).
  if (::fsync(folder.get()) != 0 && errno != EINVAL)
    fail<DataError>("{}: cannot be synchronised: {}", path.string(), reason(errno));
}

void make_directories(const fs::path& path) {
  std::error_code code;
  fs::create_directories(path, code);
  if (code) fail<DataError>("{}: the folder cannot be made: {}", path.string(), reason(code.value()));
  if (!fs::is_directory(path, code)) fail<DataError>("{}: is not a folder", path.string());
}

MappedFile::MappedFile(const fs::path& path) {
  Descriptor file(path, O_RDONLY, "read");
  struct stat info {};
  if (::fstat(file.get(), &info) != 0) fail<DataError>("{}: cannot be read: {}", path.string(), reason(errno));
  if (!S_ISREG(info.st_mode)) fail<DataError>("{}: is not a file", path.string());
  if (info.st_size == 0) fail<DataError>("{}: the file is empty", path.string());
  size_ = static_cast<size_t>(info.st_size);
  void* map = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (map == MAP_FAILED)
    fail<DataError>("{}: cannot be mapped ({}): {}", path.string(), human_bytes(size_), reason(errno));
  data_ = static_cast<const std::byte*>(map);
}

MappedFile::~MappedFile() { ::munmap(const_cast<std::byte*>(data_), size_); }

FileLock::FileLock(const fs::path& path) {
  Descriptor file(path, O_RDWR | O_CREAT, "locked");
  if (::flock(file.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) fail<DataError>("{}: cannot be locked: {}", path.string(), reason(errno));
    char holder[32] = {};
    const ssize_t n = ::pread(file.get(), holder, sizeof holder - 1, 0);
    const std::string_view pid = trim(std::string_view(holder, n > 0 ? static_cast<size_t>(n) : 0));
    fail<DataError>("{}: in use by process {} (wait for it, stop it, or choose another folder)", path.string(),
                    pid.empty() ? "unknown" : pid);
  }
  // The id is for the message above only: the lock itself goes with the process, however it ends.
  const std::string pid = fmt::format("{}\n", ::getpid());
  if (::ftruncate(file.get(), 0) != 0 ||
      ::pwrite(file.get(), pid.data(), pid.size(), 0) != static_cast<ssize_t>(pid.size()))
    fail<DataError>("{}: cannot be written: {}", path.string(), reason(errno));
  descriptor_ = file.release();
}

// The file stays: removing it would let a third process lock a new file while a second holds the old one.
FileLock::~FileLock() {
  [[maybe_unused]] const int result = ::ftruncate(descriptor_, 0);
  ::close(descriptor_);
}

}  // namespace fewstep
