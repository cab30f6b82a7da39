#include "src/io/archive.h"

#include <archive.h>
#include <archive_entry.h>

#include <memory>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/text.h"

namespace fewstep::io {
namespace {

constexpr int64_t kLargest = int64_t{1} << 30;
constexpr size_t kBlock = 1 << 18;
using Reader = std::unique_ptr<archive, int (*)(archive*)>;
using Writer = std::unique_ptr<archive, int (*)(archive*)>;

[[noreturn]] void raise(archive* a, const std::filesystem::path& path, std::string_view doing) {
  const char* reason = archive_error_string(a);
  fail<DataError>("{}: {}: {}", path.string(), doing, reason ? reason : "unknown reason");
}

Reader open_reader(const std::filesystem::path& path) {
  Reader a(archive_read_new(), archive_read_free);
  archive_read_support_filter_all(a.get());
  archive_read_support_format_tar(a.get());
  archive_read_support_format_zip(a.get());
  if (archive_read_open_filename(a.get(), path.c_str(), kBlock) != ARCHIVE_OK)
    raise(a.get(), path, "not a readable archive");
  return a;
}

// The next regular file, or nullptr at the end.
archive_entry* next_file(archive* a, const std::filesystem::path& path) {
  archive_entry* entry = nullptr;
  while (true) {
    const int code = archive_read_next_header(a, &entry);
    if (code == ARCHIVE_EOF) return nullptr;
    if (code != ARCHIVE_OK && code != ARCHIVE_WARN) raise(a, path, "corrupt archive");
    if (archive_entry_filetype(entry) == AE_IFREG) return entry;
  }
}

std::string name_of(archive_entry* entry, const std::filesystem::path& path) {
  const char* name = archive_entry_pathname(entry);
  if (name == nullptr) fail<DataError>("{}: an entry's name cannot be read in this locale", path.string());
  return name;
}

std::string entry_contents(archive* a, const std::filesystem::path& path, const std::string& name) {
  std::string bytes;
  const void* block = nullptr;
  size_t size = 0;
  la_int64_t offset = 0;
  while (true) {
    const int code = archive_read_data_block(a, &block, &size, &offset);
    if (code == ARCHIVE_EOF) return bytes;
    if (code != ARCHIVE_OK) raise(a, path, fmt::format("corrupt entry '{}'", name));
    if (offset + static_cast<int64_t>(size) > kLargest)
      fail<DataError>("{}: entry '{}' is larger than 1 GiB", path.string(), name);
    bytes.resize(static_cast<size_t>(offset), '\0');  // holes of sparse entries
    bytes.append(static_cast<const char*>(block), size);
  }
}

}  // namespace

bool is_archive_name(const std::filesystem::path& path) {
  const std::string name = to_lower(path.filename().string());
  for (std::string_view tail : {".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.zst", ".zip"})
    if (name.ends_with(tail)) return true;
  return false;
}

struct ArchiveReader::State {
  std::filesystem::path path;
  Reader reader;
  std::string name;
};
ArchiveReader::ArchiveReader(const std::filesystem::path& path)
    : state_(std::make_unique<State>(State{path, open_reader(path), {}})) {}
ArchiveReader::~ArchiveReader() = default;

bool ArchiveReader::next(std::string& name) {
  archive_entry* entry = next_file(state_->reader.get(), state_->path);
  if (!entry) return false;
  name = state_->name = name_of(entry, state_->path);
  return true;
}

std::string ArchiveReader::contents() { return entry_contents(state_->reader.get(), state_->path, state_->name); }

void read_archive(const std::filesystem::path& path,
                  const std::function<bool(const std::string&, std::string)>& visit) {
  ArchiveReader reader(path);
  for (std::string name; reader.next(name);)
    if (!visit(name, reader.contents())) return;
}

std::vector<std::string> archive_names(const std::filesystem::path& path) {
  ArchiveReader reader(path);
  std::vector<std::string> names;
  for (std::string name; reader.next(name);) names.push_back(name);
  return names;
}

void write_zip(const std::filesystem::path& path, const std::vector<std::pair<std::string, std::string>>& entries) {
  const std::filesystem::path temporary = path.string() + ".tmp";
  {
    const Writer a(archive_write_new(), archive_write_free);
    archive_write_set_format_zip(a.get());
    if (archive_write_set_options(a.get(), "zip:compression=store") != ARCHIVE_OK ||
        archive_write_open_filename(a.get(), temporary.c_str()) != ARCHIVE_OK)
      raise(a.get(), path, "cannot be written");
    for (const auto& [name, bytes] : entries) {
      const std::unique_ptr<archive_entry, void (*)(archive_entry*)> entry(archive_entry_new(), archive_entry_free);
      archive_entry_set_pathname(entry.get(), name.c_str());
      archive_entry_set_size(entry.get(), static_cast<la_int64_t>(bytes.size()));
      archive_entry_set_filetype(entry.get(), AE_IFREG);
      archive_entry_set_perm(entry.get(), 0644);
      if (archive_write_header(a.get(), entry.get()) != ARCHIVE_OK ||
          archive_write_data(a.get(), bytes.data(), bytes.size()) != static_cast<la_ssize_t>(bytes.size()))
        raise(a.get(), path, "cannot be written");
    }
    if (archive_write_close(a.get()) != ARCHIVE_OK) raise(a.get(), path, "cannot be written");
  }
  std::filesystem::rename(temporary, path);
}

}  // namespace fewstep::io
