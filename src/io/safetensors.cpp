#include "src/io/safetensors.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/hash.h"
#include "src/base/json.h"
#include "src/base/text.h"
#include "src/tensor/ops.h"

namespace fewstep::io {
namespace fs = std::filesystem;

namespace {

struct DtypeName {
  std::string_view name;
  at::ScalarType type;
};
constexpr DtypeName kTypes[] = {{"F64", at::kDouble},
                                {"F32", at::kFloat},
                                {"F16", at::kHalf},
                                {"BF16", at::kBFloat16},
                                {"F8_E4M3", at::kFloat8_e4m3fn},
                                {"F8_E5M2", at::kFloat8_e5m2},
                                {"F8_E8M0", at::kFloat8_e8m0fnu},
                                {"C64", at::kComplexFloat},
                                {"I64", at::kLong},
                                {"I32", at::kInt},
                                {"I16", at::kShort},
                                {"I8", at::kChar},
                                {"U64", at::kUInt64},
                                {"U32", at::kUInt32},
                                {"U16", at::kUInt16},
                                {"U8", at::kByte},
                                {"BOOL", at::kBool}};

at::ScalarType type_of(std::string_view dtype) {
  for (const DtypeName& t : kTypes)
    if (t.name == dtype) return t.type;
  fail("no tensor type for safetensors dtype {}", dtype);
}
std::string_view name_of(at::ScalarType type, std::string_view tensor) {
  for (const DtypeName& t : kTypes)
    if (t.type == type) return t.name;
  fail("tensor '{}': {} cannot be stored in safetensors", tensor, c10::toString(type));
}

// A shard named by an index must lie in the index's folder: no absolute path, no "..".
fs::path shard_path(const fs::path& index, const std::string& shard) {
  const fs::path relative(shard);
  bool inside = !shard.empty() && relative.is_relative();
  for (const fs::path& part : relative) inside = inside && part != "..";
  if (!inside) fail<DataError>("{}: weight_map names '{}', which is outside the index's folder", index.string(), shard);
  return index.parent_path() / relative;
}

// One tensor of a file being written.
struct Written {
  const TensorMap::value_type* item;
  at::ScalarType type;
  const std::string& name() const { return item->first; }
  const Tensor& tensor() const { return item->second; }
  Tensor contents() const {  // contiguous, on the CPU, of `type`
    const Tensor t = tensor().detach().cpu().resolve_conj().resolve_neg().contiguous();
    if (t.scalar_type() == type) return t;
    constexpr double kLargestHalf = 65504;
    if (type == at::kHalf && t.numel() > 0)
      if (const double most = t.abs().max().item<double>(); most > kLargestHalf && std::isfinite(most))
        fail<DataError>("tensor '{}' holds {}, float16 ends at {}: take bfloat16 or float32", name(), most, kLargestHalf);
    return t.to(type);
  }
};

// Larger items first, then by name: every tensor is aligned to its item size.
std::vector<Written> file_order(const TensorMap& tensors, std::optional<at::ScalarType> floats, const std::string& where) {
  std::vector<Written> order;
  for (const auto& item : tensors) {
    const Tensor& t = item.second;
    if (item.first == "__metadata__") fail("{}: '__metadata__' cannot be a tensor's name", where);
    if (!t.defined() || t.is_meta()) fail("{}: tensor '{}' has no data to write", where, item.first);
    order.push_back({&item, floats && t.is_floating_point() ? *floats : t.scalar_type()});
    name_of(order.back().type, item.first);
  }
  std::stable_sort(order.begin(), order.end(),
                   [](const Written& a, const Written& b) { return c10::elementSize(a.type) > c10::elementSize(b.type); });
  return order;
}

}  // namespace

struct Safetensors::Shard {
  explicit Shard(const fs::path& p)
      : path(p.string()), map(p), header(parse_safetensors_header({map.data(), map.size()}, path)) {}
  std::string path;
  MappedFile map;
  SafetensorsHeader header;
};

Safetensors::Safetensors(const fs::path& path) : path_(path) {
  if (path.extension() == ".json") {
    read_index();
    return;
  }
  auto shard = std::make_shared<const Shard>(path);
  for (const auto& [name, info] : shard->header.tensors) where_[name] = shard;
  metadata_ = shard->header.metadata;
}

void Safetensors::read_index() {
  const Json index = read_json(path_);
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  if (!index.is_object() || map == index.end() || !map->is_object())
    fail<DataError>("{}: no 'weight_map' object: not a safetensors index", path_.string());
  std::map<std::string, std::shared_ptr<const Shard>> shards;
  for (const auto& [name, file] : map->items()) {
    if (!file.is_string())
      fail<DataError>("{}: weight_map['{}'] is {}, expected a file name", path_.string(), name, file.dump());
    auto& shard = shards[file.get<std::string>()];
    if (!shard) {
      const fs::path at = shard_path(path_, file.get<std::string>());
      std::error_code code;
      if (!fs::exists(at, code))
        fail<DataError>("{}: shard '{}' is missing (needed for '{}')", path_.string(), file.get<std::string>(), name);
      shard = std::make_shared<const Shard>(at);
      metadata_.insert(shard->header.metadata.begin(), shard->header.metadata.end());
    }
    if (!shard->header.tensors.contains(name))
      fail<DataError>("{}: tensor '{}' is not in its shard '{}'", path_.string(), name, file.get<std::string>());
    where_[name] = shard;
  }
}

std::vector<std::string> Safetensors::names() const {
  std::vector<std::string> out;
  for (const auto& [name, shard] : where_) out.push_back(name);
  return out;
}

bool Safetensors::contains(std::string_view name) const { return where_.contains(std::string(name)); }

const TensorInfo& Safetensors::info(const std::string& name) const {
  const auto found = where_.find(name);
  if (found == where_.end()) {
    const std::string near = nearest(name, names());
    fail<DataError>("{}: no tensor '{}' among {}{}", path_.string(), name, where_.size(),
                    near.empty() ? "" : " (did you mean '" + near + "'?)");
  }
  return found->second->header.tensors.at(name);
}

Tensor Safetensors::get(const std::string& name) const {
  const TensorInfo& t = info(name);
  const std::shared_ptr<const Shard> shard = where_.at(name);
  const at::ScalarType type = type_of(t.dtype);
  const std::byte* data = shard->map.data() + shard->header.data_begin + t.begin;
  // A bool that is neither 0 nor 1 is undefined behaviour in every kernel.
  if (type == at::kBool && std::any_of(data, data + (t.end - t.begin), [](std::byte b) { return b > std::byte{1}; }))
    fail<DataError>("{}: tensor '{}': a BOOL byte is neither 0 nor 1", shard->path, name);
  const bool aligned = reinterpret_cast<uintptr_t>(data) % safetensors_item_size(t.dtype) == 0;
  if (!aligned) {  // other writers need not align: copy
    Tensor copy = at::empty(t.shape, at::TensorOptions(type));
    std::copy(data, data + (t.end - t.begin), static_cast<std::byte*>(copy.data_ptr()));
    return copy;
  }
  return at::from_blob(
      const_cast<std::byte*>(data), t.shape, [shard](void*) {}, at::TensorOptions(type));
}

TensorMap Safetensors::all() const {
  TensorMap out;
  for (const auto& [name, shard] : where_) out.emplace(name, get(name));
  return out;
}

void write_safetensors(const fs::path& path, const TensorMap& tensors,
                       const std::map<std::string, std::string>& metadata) {
  write_safetensors(path, tensors, metadata, {});
}

void write_safetensors(const fs::path& path, const TensorMap& tensors,
                       const std::map<std::string, std::string>& metadata, std::optional<at::ScalarType> floats) {
  const std::vector<Written> order = file_order(tensors, floats, path.string());
  Json header = Json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t at = 0;
  for (const Written& item : order) {
    const uint64_t end = at + static_cast<uint64_t>(item.tensor().numel()) * c10::elementSize(item.type);
    Json& entry = header[item.name()];
    entry["dtype"] = name_of(item.type, item.name());
    entry["shape"] = item.tensor().sizes().vec();
    entry["data_offsets"] = {at, end};
    at = end;
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const nlohmann::json::exception& e) {
    fail("{}: a tensor's name or the metadata is not UTF-8: {}", path.string(), e.what());
  }
  text.resize((text.size() + 7) / 8 * 8, ' ');

  FileWriter file(path);
  const uint64_t length = text.size();
  file.write(&length, sizeof length);
  file.write(text.data(), text.size());
  for (const Written& item : order) {
    const Tensor t = item.contents();
    file.write(t.const_data_ptr(), t.nbytes());
  }
  file.commit();
}

std::string safetensors_data_sha256(const TensorMap& tensors, std::optional<at::ScalarType> floats) {
  Sha256 hash;
  for (const Written& item : file_order(tensors, floats, "tensors")) {
    const Tensor t = item.contents();
    hash.update(t.const_data_ptr(), t.nbytes());
  }
  return hash.hex();
}

TensorMap to_map(const NamedTensors& tensors) {
  TensorMap out;
  for (const NamedTensor& t : tensors)
    if (!out.emplace(t.name, t.tensor).second) fail("tensor name '{}' appears twice", t.name);
  return out;
}

}  // namespace fewstep::io
