// safetensors files (huggingface/safetensors format): read by memory map, written deterministically.
#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "src/tensor/tensor.h"

namespace fewstep::io {

struct TensorInfo {
  std::string dtype;            // as in the file: "F32", "BF16", ...
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;  // byte range inside the data section
};
struct SafetensorsHeader {
  std::map<std::string, TensorInfo> tensors;
  std::map<std::string, std::string> metadata;
  uint64_t data_begin = 0;      // file offset of the data section
};
// Parses and checks the header against the file's size: DataError with `name` and the reason for every malformed one
// (truncated, header over 100 MB, invalid JSON, duplicate names, unknown dtype, size/shape/offset mismatch, overlaps,
// holes, overflow). No tensor library needed: this is the fuzzed surface.
SafetensorsHeader parse_safetensors_header(std::span<const std::byte> file, std::string_view name);

// One file, or `*.safetensors.index.json` with its shards. Tensors alias the map (keep the object while they live
// is not needed: each tensor holds the map). DataError as above.
class Safetensors {
 public:
  explicit Safetensors(const std::filesystem::path& path);
  std::vector<std::string> names() const;
  bool contains(std::string_view name) const;
  Tensor get(const std::string& name) const;             // zero-copy view of the map, read-only by convention
  const TensorInfo& info(const std::string& name) const;
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  TensorMap all() const;                                  // zero-copy

 private:
  struct Shard;
  std::map<std::string, std::shared_ptr<const Shard>> where_;
  std::map<std::string, std::string> metadata_;
};

// Sorted by (dtype size descending, name), 8-byte aligned header, contiguous copies; atomic. Same input, same bytes.
void write_safetensors(const std::filesystem::path& path, const TensorMap& tensors,
                       const std::map<std::string, std::string>& metadata = {});
TensorMap to_map(const NamedTensors& tensors);

}  // namespace fewstep::io
