// safetensors files (huggingface/safetensors format): read by memory map, written deterministically.
#pragma once
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "src/io/safetensors_header.h"
#include "src/tensor/tensor.h"

namespace fewstep::io {

// One file, or `*.safetensors.index.json` with its shards. Tensors alias the map; each one keeps the map alive, so they
// may outlive this object. DataError for every malformed file (safetensors_header.h) and index.
class Safetensors {
 public:
  explicit Safetensors(const std::filesystem::path& path);
  std::vector<std::string> names() const;
  bool contains(std::string_view name) const;
  Tensor get(const std::string& name) const;  // zero-copy view of the map, read-only by convention
  const TensorInfo& info(const std::string& name) const;
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  TensorMap all() const;  // zero-copy

 private:
  struct Shard;
  void read_index();
  std::filesystem::path path_;
  std::map<std::string, std::shared_ptr<const Shard>> where_;
  std::map<std::string, std::string> metadata_;
};

// Sorted by (dtype size descending, name), 8-byte aligned header, contiguous copies; atomic. Same input, same bytes.
void write_safetensors(const std::filesystem::path& path, const TensorMap& tensors,
                       const std::map<std::string, std::string>& metadata = {});
// With the floating-point tensors converted to `floats` (nothing: as they are), one tensor at a time: a file larger than the memory
// can be made from a map of another one. DataError when a value is beyond float16's range.
void write_safetensors(const std::filesystem::path& path, const TensorMap& tensors,
                       const std::map<std::string, std::string>& metadata, std::optional<at::ScalarType> floats);
// SHA-256 of everything behind the header of the file that write_safetensors makes (the hash of ModelSpec).
std::string safetensors_data_sha256(const TensorMap& tensors, std::optional<at::ScalarType> floats = {});
TensorMap to_map(const NamedTensors& tensors);

}  // namespace fewstep::io
