// HDF5 files: typed, chunked data sets that grow by rows, with attributes and a SHA-256 sidecar.
// Debian's libhdf5 is not re-entrant across files either: every call takes one process-wide lock. Read rows in one
// thread, decode them in others.
#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "src/tensor/tensor.h"

namespace fewstep::io {

using H5Attribute = std::variant<std::string, int64_t, double>;

// uint8, int16, int32, int64, float16, float32, float64 and UTF-8 strings; a name may be a path, "group/name". Every
// failure is a DataError that names the path and libhdf5's innermost reason.
class H5File {
 public:
  // Reading verifies `<path>.sha256` first: a mismatch is a DataError, a missing sidecar a warning.
  static H5File open(const std::filesystem::path& path);
  // A new file, under a temporary name until commit(); without commit() nothing remains.
  static H5File create(const std::filesystem::path& path);
  H5File(H5File&& other) noexcept;
  H5File& operator=(H5File&&) = delete;
  ~H5File();
  void commit();  // writes all, makes it durable, renames, writes the sidecar; the object is closed then

  std::vector<std::string> names() const;  // data sets in the root group, sorted
  bool contains(const std::string& name) const;
  std::vector<int64_t> shape(const std::string& name) const;
  at::ScalarType dtype(const std::string& name) const;

  // [0, row...], growing along the first dimension. chunk_rows 0: chunks of about 64 KB. deflate 0: not compressed.
  struct Layout {
    std::vector<int64_t> row = {};
    int64_t chunk_rows = 0;
    int deflate = 0;
  };
  void create_dataset(const std::string& name, at::ScalarType type, const Layout& layout);
  void append(const std::string& name, const Tensor& rows);                  // [n, row...], the data set's own type
  void write(const std::string& name, const Tensor& rows, int deflate = 0);  // create_dataset + append
  Tensor read(const std::string& name) const;
  Tensor read_rows(const std::string& name, int64_t begin, int64_t end) const;  // [end - begin, row...]
  void write_strings(const std::string& name, const std::vector<std::string>& values);
  std::vector<std::string> read_strings(const std::string& name) const;  // variable or fixed length

  // Of the file (object "/") or of a data set.
  void set_attribute(const std::string& key, const H5Attribute& value, const std::string& object = "/");
  bool has_attribute(const std::string& key, const std::string& object = "/") const;
  H5Attribute attribute(const std::string& key, const std::string& object = "/") const;
  std::string attribute_string(const std::string& key, const std::string& object = "/") const;  // DataError: other type
  int64_t attribute_int(const std::string& key, const std::string& object = "/") const;

  const std::filesystem::path& path() const { return path_; }

 private:
  explicit H5File(std::filesystem::path path) : path_(std::move(path)) {}
  int64_t dataset(const std::string& name) const;  // open handle, kept
  void close_handles() noexcept;
  [[noreturn]] void raise(const std::string& doing) const;

  std::filesystem::path path_, temporary_;  // temporary_: while being created
  int64_t file_ = -1;
  mutable std::map<std::string, int64_t> datasets_;
};

// `<path>.sha256` in sha256sum's format. Verification is remembered by size and modification time in `<path>.sha256.ok`
// where the folder is writable, so a large file is hashed once.
void write_sidecar(const std::filesystem::path& path);
void verify_sidecar(const std::filesystem::path& path);

}  // namespace fewstep::io
