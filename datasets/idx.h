// The IDX format of MNIST (http://yann.lecun.com/exdb/mnist): big-endian magic 0 0 type rank, the sizes, then the
// values.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace fewstep {

struct IdxArray {
  std::vector<int64_t> shape;
  std::vector<uint8_t> values;  // row-major
  std::string sha256;           // of the file's bytes as stored
};

// Unsigned bytes only; gzip by content. DataError with path and reason for everything that is not exactly such a file:
// wrong magic, type or rank, sizes that overflow, truncated or trailing bytes, gzip damage.
IdxArray read_idx(const std::filesystem::path& path, size_t rank);

}  // namespace fewstep
