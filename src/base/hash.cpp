#include "src/base/hash.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <system_error>
#include <utility>
#include <vector>

#include "src/base/error.h"

namespace fewstep {

struct Sha256::State {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  bool finished = false;
  ~State() { EVP_MD_CTX_free(context); }
};

Sha256::Sha256() : state_(std::make_unique<State>()) {
  FEW_CHECK(state_->context && EVP_DigestInit_ex(state_->context, EVP_sha256(), nullptr) == 1,
            "SHA-256 is not available");
}
Sha256::~Sha256() = default;

void Sha256::update(const void* data, size_t bytes) {
  FEW_CHECK(!state_->finished && EVP_DigestUpdate(state_->context, data, bytes) == 1, "SHA-256: update() after hex()");
}

std::string Sha256::hex() {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned int length = 0;
  FEW_CHECK(!std::exchange(state_->finished, true), "SHA-256: hex() was already called");
  FEW_CHECK(EVP_DigestFinal_ex(state_->context, digest.data(), &length) == 1, "SHA-256 failed");
  std::string text;
  for (unsigned int i = 0; i < length; ++i) text += fmt::format("{:02x}", digest[i]);
  return text;
}

std::string sha256_hex(std::string_view bytes) {
  Sha256 hash;
  hash.update(bytes.data(), bytes.size());
  return hash.hex();
}

std::string sha256_file(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) fail<DataError>("{}: cannot be read: {}", path, std::generic_category().message(errno));
  Sha256 hash;
  std::vector<char> buffer(1 << 20);
  for (;;) {
    const ssize_t n = ::read(file, buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      const int reason = errno;
      ::close(file);
      fail<DataError>("{}: cannot be read: {}", path, std::generic_category().message(reason));
    }
    if (n == 0) break;
    hash.update(buffer.data(), static_cast<size_t>(n));
  }
  ::close(file);
  return hash.hex();
}

uint32_t crc32c(const void* data, size_t bytes) {
  // Castagnoli polynomial 0x1EDC6F41, reflected (RFC 3720, appendix B.4).
  static constexpr auto kTable = [] {
    std::array<uint32_t, 256> table{};
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t c = i;
      for (int bit = 0; bit < 8; ++bit) c = (c >> 1) ^ (c & 1 ? 0x82F63B78u : 0);
      table[i] = c;
    }
    return table;
  }();
  uint32_t crc = ~0u;
  const auto* byte = static_cast<const unsigned char*>(data);
  for (size_t i = 0; i < bytes; ++i) crc = (crc >> 8) ^ kTable[(crc ^ byte[i]) & 0xFF];
  return ~crc;
}

uint64_t fnv1a64(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325ull;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
  return hash;
}

}  // namespace fewstep
