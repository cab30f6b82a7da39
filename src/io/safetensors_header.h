// The header of a safetensors file, parsed and checked without any tensor library: this is the fuzzed surface.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace fewstep::io {

struct TensorInfo {
  std::string dtype;  // as in the file: "F32", "BF16", ...
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;  // byte range inside the data section
};
struct SafetensorsHeader {
  std::map<std::string, TensorInfo> tensors;
  std::map<std::string, std::string> metadata;
  uint64_t data_begin = 0;  // file offset of the data section
};
// Parses and checks the header against the file's size: DataError with `name` and the reason for every malformed one
// (truncated, header over 100 MB, invalid JSON, duplicate names, unknown dtype, size/shape/offset mismatch, overlaps,
// holes, overflow).
SafetensorsHeader parse_safetensors_header(std::span<const std::byte> file, std::string_view name);

// Bytes of one element; 0 for a name that is not a known dtype.
uint64_t safetensors_item_size(std::string_view dtype);

}  // namespace fewstep::io
