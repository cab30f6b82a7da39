// Content hashes. SHA-256 (OpenSSL) names weights, data and configs; CRC-32C frames TensorBoard records.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace fewstep {

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;
  void update(const void* data, size_t bytes);
  std::string hex();  // finishes; 64 lower-case hex digits

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string sha256_hex(std::string_view bytes);
std::string sha256_file(const std::string& path);  // DataError when unreadable
uint32_t crc32c(const void* data, size_t bytes);
uint64_t fnv1a64(std::string_view text);           // stable name -> key for random streams

}  // namespace fewstep
