// A folder like Debian's Fashion-MNIST with garments that a test knows: bright rectangles of a height and width that
// follow from their index, with a stripe inside, labels in turn.
#pragma once
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "datasets/idx.h"

namespace fewstep::testing {

inline void write_idx(const std::filesystem::path& path, const std::vector<uint32_t>& shape,
                      const std::string& values) {
  std::string bytes = {0, 0, 8, static_cast<char>(shape.size())};
  for (uint32_t n : shape)
    for (int shift : {24, 16, 8, 0}) bytes.push_back(static_cast<char>(n >> shift));
  std::ofstream(path, std::ios::binary) << bytes << values;
}

inline void write_fake_fashion(const std::filesystem::path& folder, int64_t train, int64_t test) {
  for (const auto& [prefix, count] : {std::pair{std::string("train"), train}, {std::string("t10k"), test}}) {
    std::string images(static_cast<size_t>(count) * 784, '\0'), labels;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t height = 12 + i % 15, width = 8 + i / 3 % 19;  // 12 ... 26, 8 ... 26
      char* out = images.data() + i * 784 + (28 - height) / 2 * 28 + (28 - width) / 2;
      for (int64_t y = 0; y < height; ++y)
        for (int64_t x = 0; x < width; ++x) out[y * 28 + x] = static_cast<char>((x + y) % 2 == 0 ? 220 : 120);
      labels.push_back(static_cast<char>(i % 10));
    }
    const auto n = static_cast<uint32_t>(count);
    write_idx(folder / (prefix + "-images-idx3-ubyte"), {n, 28, 28}, images);
    write_idx(folder / (prefix + "-labels-idx1-ubyte"), {n}, labels);
  }
}

}  // namespace fewstep::testing
