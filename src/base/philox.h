// Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011, table 2). The value depends on (key, counter)
// only, so a draw needs no state, and results do not depend on batch size, order, threads or ranks.
#pragma once
#include <array>
#include <cstdint>

namespace fewstep {

inline std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = 0xD2511F53ull * counter[0], p1 = 0xCD9E8D57ull * counter[2];
    counter = {static_cast<uint32_t>(p1 >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(p1),
               static_cast<uint32_t>(p0 >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(p0)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

// One 64-bit word for (seed; a, b): what a stream is keyed with.
inline uint64_t philox_u64(uint64_t seed, uint64_t a, uint64_t b) {
  const auto r = philox4x32({static_cast<uint32_t>(a), static_cast<uint32_t>(a >> 32), static_cast<uint32_t>(b),
                             static_cast<uint32_t>(b >> 32)},
                            {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return (static_cast<uint64_t>(r[1]) << 32) | r[0];
}

// Uniform in [0, 1) with 53 bits.
inline double philox_uniform(uint64_t seed, uint64_t a, uint64_t b) {
  return static_cast<double>(philox_u64(seed, a, b) >> 11) * 0x1.0p-53;
}

}  // namespace fewstep
