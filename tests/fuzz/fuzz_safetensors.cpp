// libFuzzer target: any bytes as a safetensors file. Only DataError may leave, and what is accepted must be sound.
//   clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -I. tests/fuzz/fuzz_safetensors.cpp
//     src/io/safetensors_header.cpp -lfmt -o build/fuzz_safetensors
//   build/fuzz_safetensors -dict=tests/fuzz/safetensors.dict -max_len=4096 -max_total_time=300 CORPUS
#include <cstdlib>
#include <cstring>

#include "src/base/error.h"
#include "src/io/safetensors_header.h"

static void check(const fewstep::io::SafetensorsHeader& header, size_t size) {
  uint64_t total = 0;
  for (const auto& [name, t] : header.tensors) {
    uint64_t bytes = fewstep::io::safetensors_item_size(t.dtype);
    for (int64_t d : t.shape) bytes *= static_cast<uint64_t>(d);
    if (t.end < t.begin || t.end - t.begin != bytes || header.data_begin + t.end > size) std::abort();
    total += bytes;
  }
  if (header.data_begin + total != size) std::abort();
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto parse = [](const void* bytes, size_t n) {
    try {
      check(fewstep::io::parse_safetensors_header({static_cast<const std::byte*>(bytes), n}, "fuzz"), n);
    } catch (const fewstep::DataError&) {
    }
  };
  parse(data, size);  // the eight length bytes come from the fuzzer too
  // The same bytes behind a length that fits: two thirds of them, or all, are the header.
  std::string file(8, '\0');
  file.append(reinterpret_cast<const char*>(data), size);
  const size_t brace = file.rfind("}}");
  for (const uint64_t length : {static_cast<uint64_t>(size),
                                static_cast<uint64_t>(brace == file.npos || brace < 8 ? size / 3 * 2 : brace - 6)}) {
    std::memcpy(file.data(), &length, 8);
    parse(file.data(), file.size());
  }
  return 0;
}
