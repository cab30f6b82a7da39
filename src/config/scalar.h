// Strict scalars. YAML 1.1 would read 010 as 8, yes as true and 1_0 as 10; here a scalar is what it looks like.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace fewstep::config {

// Each returns nothing when `text` is of the type, else the words behind "expected an integer, got '1e6'", e.g.
// " (write 1000000)"; empty words are a plain mismatch.
std::optional<std::string> parse_bool(std::string_view text, bool& value);      // true | false
std::optional<std::string> parse_int(std::string_view text, int64_t& value);    // decimal digits, no leading zero
std::optional<std::string> parse_double(std::string_view text, double& value);  // finite decimal

std::string double_text(double value);  // shortest text that reads back to the same double
// `text` as a YAML string: plain where nothing else could be read from it, else in double quotes. ConfigError for what
// YAML cannot hold (not UTF-8, NUL).
std::string string_text(std::string_view text);

// Byte offset of the first byte that is not valid UTF-8; npos when all is.
size_t find_invalid_utf8(std::string_view text);
// For messages: one line, at most about 80 characters, control characters escaped.
std::string printable(std::string_view text);

}  // namespace fewstep::config
