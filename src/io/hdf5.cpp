#include "src/io/hdf5.h"

#include <fcntl.h>
#include <hdf5.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <mutex>
#include <numeric>
#include <system_error>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/tensor/ops.h"

namespace fewstep::io {
namespace fs = std::filesystem;
namespace {

// One call into libhdf5 at a time; its printing of errors is off (the switch is per thread).
std::recursive_mutex& mutex() {
  static std::recursive_mutex m;
  return m;
}
struct Guard {
  Guard() { H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr); }
  std::lock_guard<std::recursive_mutex> lock{mutex()};
};

// Closes a handle with the function that belongs to its kind.
class Handle {
 public:
  Handle(hid_t id, herr_t (*close)(hid_t)) : id_(id), close_(close) {}
  ~Handle() {
    if (id_ >= 0) close_(id_);
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  operator hid_t() const { return id_; }
  hid_t release() { return std::exchange(id_, -1); }

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

// IEEE half precision, which HDF5 1.10 has no name for: the same fields as h5py writes.
hid_t half_type() {
  static const hid_t type = [] {
    const hid_t t = H5Tcopy(H5T_IEEE_F32LE);
    H5Tset_fields(t, 15, 10, 5, 0, 10);
    H5Tset_size(t, 2);
    H5Tset_ebias(t, 15);
    H5Tlock(t);
    return t;
  }();
  return type;
}

struct TypeEntry {
  at::ScalarType type;
  hid_t native, stored;  // native in memory, little-endian in the file
};
std::vector<TypeEntry> types() {  // the constants are function calls, valid only after H5open()
  return {{at::kByte, H5T_NATIVE_UINT8, H5T_STD_U8LE},    {at::kShort, H5T_NATIVE_INT16, H5T_STD_I16LE},
          {at::kInt, H5T_NATIVE_INT32, H5T_STD_I32LE},    {at::kLong, H5T_NATIVE_INT64, H5T_STD_I64LE},
          {at::kHalf, half_type(), half_type()},          {at::kFloat, H5T_NATIVE_FLOAT, H5T_IEEE_F32LE},
          {at::kDouble, H5T_NATIVE_DOUBLE, H5T_IEEE_F64LE}};
}
TypeEntry type_entry(at::ScalarType type, const std::string& place) {
  for (const TypeEntry& t : types())
    if (t.type == type) return t;
  fail("{}: {} cannot be stored in HDF5 (known: uint8, int16, int32, int64, float16, float32, float64)", place,
       c10::toString(type));
}

std::string innermost_error() {
  std::string text;
  const auto first = [](unsigned, const H5E_error2_t* e, void* out) -> herr_t {
    auto& to = *static_cast<std::string*>(out);
    if (to.empty() && e->desc != nullptr) to = e->desc;
    return 0;
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, first, &text);
  return text.empty() ? "unknown reason" : text;
}

hid_t string_type() {
  const hid_t type = H5Tcopy(H5T_C_S1);
  H5Tset_size(type, H5T_VARIABLE);
  H5Tset_cset(type, H5T_CSET_UTF8);
  return type;
}

std::vector<hsize_t> extent_of(hid_t dataset) {
  const Handle space(H5Dget_space(dataset), H5Sclose);
  std::vector<hsize_t> extent(static_cast<size_t>(std::max(H5Sget_simple_extent_ndims(space), 0)));
  if (!extent.empty()) H5Sget_simple_extent_dims(space, extent.data(), nullptr);
  return extent;
}

}  // namespace

void H5File::raise(const std::string& doing) const {
  const std::string reason = innermost_error();
  H5Eclear2(H5E_DEFAULT);
  fail<DataError>("{}: {}: {}", path_.string(), doing, reason);
}

H5File H5File::open(const fs::path& path) {
  verify_sidecar(path);
  Guard guard;
  H5File file(path);
  file.file_ = H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);
  if (file.file_ < 0) file.raise("cannot be opened as HDF5");
  return file;
}

H5File H5File::create(const fs::path& path) {
  Guard guard;
  H5File file(path);
  const fs::path folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
  file.temporary_ = folder / fmt::format(".{}.tmp-{}", path.filename().string(), ::getpid());
  // The format of 1.10 indexes the chunks of a growing data set without a search tree.
  const Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_LATEST);
  file.file_ = H5Fcreate(file.temporary_.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access);
  if (file.file_ < 0) file.raise("cannot be created");
  return file;
}

H5File::H5File(H5File&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_(std::exchange(other.temporary_, {})),
      file_(std::exchange(other.file_, -1)),
      datasets_(std::exchange(other.datasets_, {})) {}

H5File::~H5File() {
  Guard guard;
  close_handles();
  if (file_ >= 0) H5Fclose(file_);
  std::error_code ignored;
  if (!temporary_.empty()) fs::remove(temporary_, ignored);
}

void H5File::close_handles() noexcept {
  for (const auto& [name, id] : datasets_) H5Dclose(id);
  datasets_.clear();
}

void H5File::commit() {
  Guard guard;
  FEW_CHECK(file_ >= 0 && !temporary_.empty(), "{}: commit of a file that is not being created", path_.string());
  if (H5Fflush(file_, H5F_SCOPE_GLOBAL) < 0) raise("cannot be written");
  close_handles();
  if (H5Fclose(std::exchange(file_, -1)) < 0) raise("cannot be written");
  const int descriptor = ::open(temporary_.c_str(), O_RDONLY | O_CLOEXEC);
  const bool synced = descriptor >= 0 && ::fsync(descriptor) == 0;
  const int code = errno;
  if (descriptor >= 0) ::close(descriptor);
  if (!synced) fail<DataError>("{}: cannot be written: {}", path_.string(), std::generic_category().message(code));
  // The old sidecar goes first: a crash in between leaves an unverified file, never one that contradicts its sidecar.
  std::error_code ignored;
  fs::remove(path_.string() + ".sha256", ignored);
  fs::remove(path_.string() + ".sha256.ok", ignored);
  if (::rename(temporary_.c_str(), path_.c_str()) != 0)
    fail<DataError>("{}: cannot be written: {}", path_.string(), std::generic_category().message(errno));
  temporary_.clear();
  write_sidecar(path_);
}

std::vector<std::string> H5File::names() const {
  Guard guard;
  std::vector<std::string> out;
  const auto visit = [](hid_t group, const char* name, const H5L_info_t*, void* to) -> herr_t {
    H5O_info_t info;
    if (H5Oget_info_by_name(group, name, &info, H5P_DEFAULT) >= 0 && info.type == H5O_TYPE_DATASET)
      static_cast<std::vector<std::string>*>(to)->emplace_back(name);
    return 0;
  };
  if (H5Literate(file_, H5_INDEX_NAME, H5_ITER_INC, nullptr, visit, &out) < 0) raise("cannot be listed");
  return out;
}

bool H5File::contains(const std::string& name) const {
  Guard guard;
  return H5Lexists(file_, name.c_str(), H5P_DEFAULT) > 0;
}

int64_t H5File::dataset(const std::string& name) const {
  if (const auto found = datasets_.find(name); found != datasets_.end()) return found->second;
  if (!contains(name))
    fail<DataError>("{}: no data set '{}' (has: {})", path_.string(), name, c10::Join(", ", names()));
  const hid_t id = H5Dopen2(file_, name.c_str(), H5P_DEFAULT);
  if (id < 0) raise("data set '" + name + "'");
  return datasets_[name] = id;
}

std::vector<int64_t> H5File::shape(const std::string& name) const {
  Guard guard;
  const std::vector<hsize_t> extent = extent_of(dataset(name));
  return {extent.begin(), extent.end()};
}

at::ScalarType H5File::dtype(const std::string& name) const {
  Guard guard;
  const Handle type(H5Dget_type(dataset(name)), H5Tclose);
  const H5T_class_t kind = H5Tget_class(type);
  const size_t size = H5Tget_size(type);
  if (kind == H5T_FLOAT && size == 2 && H5Tequal(type, half_type()) > 0) return at::kHalf;
  if (kind == H5T_FLOAT && size == 4) return at::kFloat;
  if (kind == H5T_FLOAT && size == 8) return at::kDouble;
  if (kind == H5T_INTEGER && size == 1 && H5Tget_sign(type) == H5T_SGN_NONE) return at::kByte;
  if (kind == H5T_INTEGER && H5Tget_sign(type) == H5T_SGN_2) {
    if (size == 2) return at::kShort;
    if (size == 4) return at::kInt;
    if (size == 8) return at::kLong;
  }
  fail<DataError>("{}: data set '{}' has a type that is not read here (class {}, {} bytes)", path_.string(), name,
                  static_cast<int>(kind), size);
}

void H5File::create_dataset(const std::string& name, at::ScalarType type, const Layout& layout) {
  Guard guard;
  FEW_CHECK(!temporary_.empty(), "{}: opened for reading, '{}' cannot be created", path_.string(), name);
  std::vector<hsize_t> extent{0}, most{H5S_UNLIMITED}, chunk{1};
  uint64_t row_bytes = c10::elementSize(type);
  for (const int64_t d : layout.row) {
    FEW_CHECK(d > 0, "{}: data set '{}' with a row dimension of {}", path_.string(), name, d);
    extent.push_back(static_cast<hsize_t>(d));
    most.push_back(static_cast<hsize_t>(d));
    chunk.push_back(static_cast<hsize_t>(d));
    row_bytes *= static_cast<uint64_t>(d);
  }
  chunk[0] = static_cast<hsize_t>(
      layout.chunk_rows > 0 ? layout.chunk_rows : std::max<int64_t>(1, (64 << 10) / static_cast<int64_t>(row_bytes)));
  const Handle space(H5Screate_simple(static_cast<int>(extent.size()), extent.data(), most.data()), H5Sclose);
  const Handle options(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  H5Pset_chunk(options, static_cast<int>(chunk.size()), chunk.data());
  if (layout.deflate > 0) {
    H5Pset_shuffle(options);
    H5Pset_deflate(options, static_cast<unsigned>(layout.deflate));
  }
  const Handle link(H5Pcreate(H5P_LINK_CREATE), H5Pclose);
  H5Pset_create_intermediate_group(link, 1);  // "group/name"
  const hid_t id =
      H5Dcreate2(file_, name.c_str(), type_entry(type, path_.string()).stored, space, link, options, H5P_DEFAULT);
  if (id < 0) raise("data set '" + name + "' cannot be created");
  datasets_[name] = id;
}

void H5File::append(const std::string& name, const Tensor& rows) {
  Guard guard;
  const hid_t id = dataset(name);
  std::vector<hsize_t> extent = extent_of(id), start(extent.size(), 0), count = extent;
  bool fits = rows.dim() == static_cast<int64_t>(extent.size()) && rows.scalar_type() == dtype(name);
  for (size_t d = 1; fits && d < extent.size(); ++d)
    fits = rows.size(static_cast<int64_t>(d)) == static_cast<int64_t>(extent[d]);
  FEW_CHECK(fits, "{}: rows of {} [{}] do not fit data set '{}' of {} [{}]", path_.string(),
            c10::toString(rows.scalar_type()), c10::str(rows.sizes()), name, c10::toString(dtype(name)),
            c10::Join(", ", extent));
  if (rows.size(0) == 0) return;
  start[0] = extent[0];
  count[0] = static_cast<hsize_t>(rows.size(0));
  extent[0] += count[0];
  if (H5Dset_extent(id, extent.data()) < 0) raise("data set '" + name + "' cannot grow");
  const Handle space(H5Dget_space(id), H5Sclose),
      memory(H5Screate_simple(static_cast<int>(count.size()), count.data(), nullptr), H5Sclose);
  H5Sselect_hyperslab(space, H5S_SELECT_SET, start.data(), nullptr, count.data(), nullptr);
  const Tensor data = rows.detach().cpu().contiguous();
  if (H5Dwrite(id, type_entry(data.scalar_type(), path_.string()).native, memory, space, H5P_DEFAULT,
               data.const_data_ptr()) < 0)
    raise("data set '" + name + "' cannot be written");
}

void H5File::write(const std::string& name, const Tensor& rows, int deflate) {
  FEW_CHECK(rows.dim() > 0, "{}: '{}' is a scalar, store it as an attribute", path_.string(), name);
  create_dataset(name, rows.scalar_type(), {.row = rows.sizes().slice(1).vec(), .deflate = deflate});
  append(name, rows);
}

Tensor H5File::read(const std::string& name) const { return read_rows(name, 0, shape(name).at(0)); }

Tensor H5File::read_rows(const std::string& name, int64_t begin, int64_t end) const {
  Guard guard;
  const hid_t id = dataset(name);
  std::vector<hsize_t> extent = extent_of(id), start(extent.size(), 0);
  if (extent.empty()) fail<DataError>("{}: data set '{}' has no rows: a scalar", path_.string(), name);
  if (begin < 0 || end < begin || end > static_cast<int64_t>(extent[0]))
    fail<DataError>("{}: rows {}...{} of data set '{}', which has {}", path_.string(), begin, end, name, extent[0]);
  start[0] = static_cast<hsize_t>(begin);
  extent[0] = static_cast<hsize_t>(end - begin);
  Tensor out = at::empty(std::vector<int64_t>(extent.begin(), extent.end()), dtype(name));
  if (out.numel() == 0) return out;
  const Handle space(H5Dget_space(id), H5Sclose),
      memory(H5Screate_simple(static_cast<int>(extent.size()), extent.data(), nullptr), H5Sclose);
  H5Sselect_hyperslab(space, H5S_SELECT_SET, start.data(), nullptr, extent.data(), nullptr);
  if (H5Dread(id, type_entry(out.scalar_type(), path_.string()).native, memory, space, H5P_DEFAULT,
              out.mutable_data_ptr()) < 0)
    raise(fmt::format("data set '{}': rows {}...{} cannot be read", name, begin, end));
  return out;
}

void H5File::write_strings(const std::string& name, const std::vector<std::string>& values) {
  Guard guard;
  const hsize_t n = values.size();
  const Handle type(string_type(), H5Tclose), space(H5Screate_simple(1, &n, nullptr), H5Sclose);
  const hid_t id = H5Dcreate2(file_, name.c_str(), type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
  if (id < 0) raise("data set '" + name + "' cannot be created");
  datasets_[name] = id;
  std::vector<const char*> pointers;
  for (const std::string& v : values) {
    FEW_CHECK(v.find('\0') == v.npos, "{}: a text in '{}' holds a zero byte", path_.string(), name);
    pointers.push_back(v.c_str());
  }
  if (n > 0 && H5Dwrite(id, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, pointers.data()) < 0)
    raise("data set '" + name + "' cannot be written");
}

std::vector<std::string> H5File::read_strings(const std::string& name) const {
  Guard guard;
  const hid_t id = dataset(name);
  const Handle type(H5Dget_type(id), H5Tclose), space(H5Dget_space(id), H5Sclose);
  if (H5Tget_class(type) != H5T_STRING) fail<DataError>("{}: data set '{}' does not hold text", path_.string(), name);
  const auto n = static_cast<size_t>(std::max<hssize_t>(H5Sget_simple_extent_npoints(space), 0));
  std::vector<std::string> out(n);
  if (n == 0) return out;
  if (H5Tis_variable_str(type) > 0) {
    std::vector<char*> pointers(n, nullptr);
    const Handle memory(H5Tcopy(type), H5Tclose);
    if (H5Dread(id, memory, H5S_ALL, H5S_ALL, H5P_DEFAULT, pointers.data()) < 0)
      raise("data set '" + name + "' cannot be read");
    for (size_t i = 0; i < n; ++i) out[i] = pointers[i] != nullptr ? pointers[i] : "";
    H5Dvlen_reclaim(memory, space, H5P_DEFAULT, pointers.data());
    return out;
  }
  const size_t size = H5Tget_size(type);
  std::string all(n * size, '\0');
  if (H5Dread(id, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, all.data()) < 0) raise("data set '" + name + "' cannot be read");
  for (size_t i = 0; i < n; ++i) out[i] = all.substr(i * size, size).c_str();  // up to the first padding zero
  return out;
}

void H5File::set_attribute(const std::string& key, const H5Attribute& value, const std::string& object) {
  Guard guard;
  const Handle owner(H5Oopen(file_, object.c_str(), H5P_DEFAULT), H5Oclose), space(H5Screate(H5S_SCALAR), H5Sclose);
  if (owner < 0) raise("object '" + object + "'");
  if (H5Aexists(owner, key.c_str()) > 0) H5Adelete(owner, key.c_str());
  const auto put = [&](hid_t stored, hid_t native, const void* data) {
    const Handle attribute(H5Acreate2(owner, key.c_str(), stored, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
    if (attribute < 0 || H5Awrite(attribute, native, data) < 0) raise("attribute '" + key + "' cannot be written");
  };
  if (const auto* text = std::get_if<std::string>(&value)) {
    const Handle type(string_type(), H5Tclose);
    const char* pointer = text->c_str();
    put(type, type, &pointer);
  } else if (const auto* number = std::get_if<int64_t>(&value)) {
    put(H5T_STD_I64LE, H5T_NATIVE_INT64, number);
  } else {
    put(H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, &std::get<double>(value));
  }
}

bool H5File::has_attribute(const std::string& key, const std::string& object) const {
  Guard guard;
  return H5Aexists_by_name(file_, object.c_str(), key.c_str(), H5P_DEFAULT) > 0;
}

H5Attribute H5File::attribute(const std::string& key, const std::string& object) const {
  Guard guard;
  if (!has_attribute(key, object)) fail<DataError>("{}: '{}' has no attribute '{}'", path_.string(), object, key);
  const Handle attribute(H5Aopen_by_name(file_, object.c_str(), key.c_str(), H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
  if (attribute < 0) raise("attribute '" + key + "'");
  const Handle type(H5Aget_type(attribute), H5Tclose);
  const std::string unreadable = "attribute '" + key + "' cannot be read";
  switch (H5Tget_class(type)) {
    case H5T_INTEGER: {
      int64_t value = 0;
      if (H5Aread(attribute, H5T_NATIVE_INT64, &value) < 0) raise(unreadable);
      return value;
    }
    case H5T_FLOAT: {
      double value = 0;
      if (H5Aread(attribute, H5T_NATIVE_DOUBLE, &value) < 0) raise(unreadable);
      return value;
    }
    case H5T_STRING:
      break;
    default:
      fail<DataError>("{}: attribute '{}' is neither a number nor text", path_.string(), key);
  }
  if (H5Tis_variable_str(type) > 0) {
    char* text = nullptr;
    if (H5Aread(attribute, type, &text) < 0) raise(unreadable);
    std::string value = text != nullptr ? text : "";
    H5free_memory(text);
    return value;
  }
  std::string value(H5Tget_size(type), '\0');
  if (H5Aread(attribute, type, value.data()) < 0) raise(unreadable);
  return std::string(value.c_str());
}

std::string H5File::attribute_string(const std::string& key, const std::string& object) const {
  const H5Attribute value = attribute(key, object);
  if (const auto* text = std::get_if<std::string>(&value)) return *text;
  fail<DataError>("{}: attribute '{}' of '{}' is a number, expected text", path_.string(), key, object);
}

int64_t H5File::attribute_int(const std::string& key, const std::string& object) const {
  const H5Attribute value = attribute(key, object);
  if (const auto* number = std::get_if<int64_t>(&value)) return *number;
  fail<DataError>("{}: attribute '{}' of '{}' is not a whole number", path_.string(), key, object);
}

}  // namespace fewstep::io
