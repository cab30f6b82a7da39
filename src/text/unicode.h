// The three Unicode character classes that pre-tokenisation needs, and UTF-8 walking that never fails.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace fewstep::text {

enum class CharClass { letter, number, space, other };  // \p{L}, \p{N}, White_Space, the rest

struct CodePoint {
  uint32_t value = 0;  // an invalid byte stands for itself plus kInvalid
  size_t bytes = 1;
};
inline constexpr uint32_t kInvalid = 0x110000;

// The code point at `position` (< text.size()). Overlong forms, surrogates and torn sequences are single invalid bytes.
CodePoint code_point_at(std::string_view text, size_t position);
CharClass char_class(uint32_t code_point);
void append_utf8(uint32_t code_point, std::string& out);

}  // namespace fewstep::text
