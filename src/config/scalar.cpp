#include "src/config/scalar.h"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <cmath>

#include "src/base/error.h"
#include "src/base/text.h"

namespace fewstep::config {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

size_t skip_digits(std::string_view text, size_t i) {
  while (i < text.size() && is_digit(text[i])) ++i;
  return i;
}

bool has_leading_zero(std::string_view text) {
  const size_t first = !text.empty() && text[0] == '-' ? 1 : 0;
  return text.size() > first + 1 && text[first] == '0' && is_digit(text[first + 1]);
}

// -? digits (. digits)? ([eE] [+-]? digits)?, with digits on at least one side of the point
bool looks_decimal(std::string_view text) {
  size_t i = !text.empty() && text[0] == '-' ? 1 : 0;
  const size_t whole = i;
  i = skip_digits(text, i);
  size_t digits = i - whole;
  if (i < text.size() && text[i] == '.') {
    const size_t fraction = ++i;
    i = skip_digits(text, i);
    digits += i - fraction;
  }
  if (digits == 0) return false;
  if (i < text.size() && (text[i] == 'e' || text[i] == 'E')) {
    ++i;
    if (i < text.size() && (text[i] == '+' || text[i] == '-')) ++i;
    const size_t exponent = i;
    i = skip_digits(text, i);
    if (i == exponent) return false;
  }
  return i == text.size();
}

// What any YAML reader might take for something other than a string.
bool looks_like_another_type(std::string_view text) {
  static constexpr std::array<std::string_view, 12> kWords = {"true", "false", "yes",  "no",  "on",  "off",
                                                              "y",    "n",     "null", "nan", "inf", "infinity"};
  const std::string lower = to_lower(text);
  for (const std::string_view word : kWords)
    if (lower == word) return true;
  return is_digit(text[0]);  // numbers, dates, 0x..., 12:30
}

constexpr std::string_view kPlainFirst = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_/";
constexpr std::string_view kPlainRest = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_/0123456789.+-";

bool is_plain(std::string_view text) {
  return !text.empty() && kPlainFirst.find(text[0]) != std::string_view::npos &&
         text.find_first_not_of(kPlainRest) == std::string_view::npos && !looks_like_another_type(text);
}

// Length of the valid UTF-8 sequence at `i` (RFC 3629, table in section 4), 0 when there is none.
size_t utf8_length(std::string_view text, size_t i) {
  const auto byte = [&](size_t k) { return k < text.size() ? static_cast<unsigned char>(text[k]) : 0u; };
  const auto tail = [&](size_t k) { return (byte(k) & 0xC0u) == 0x80u; };
  const unsigned c = byte(i);
  if (c < 0x80) return 1;
  if (c >= 0xC2 && c <= 0xDF) return tail(i + 1) ? 2 : 0;
  if (c >= 0xE0 && c <= 0xEF) {
    if ((c == 0xE0 && byte(i + 1) < 0xA0) || (c == 0xED && byte(i + 1) > 0x9F)) return 0;  // overlong, surrogates
    return tail(i + 1) && tail(i + 2) ? 3 : 0;
  }
  if (c >= 0xF0 && c <= 0xF4) {
    if ((c == 0xF0 && byte(i + 1) < 0x90) || (c == 0xF4 && byte(i + 1) > 0x8F)) return 0;  // overlong, above U+10FFFF
    return tail(i + 1) && tail(i + 2) && tail(i + 3) ? 4 : 0;
  }
  return 0;
}

}  // namespace

std::optional<std::string> parse_bool(std::string_view text, bool& value) {
  if (text != "true" && text != "false") {
    const std::string lower = to_lower(text);
    if (lower == "true" || lower == "yes" || lower == "on" || lower == "y" || lower == "1") return " (write true)";
    if (lower == "false" || lower == "no" || lower == "off" || lower == "n" || lower == "0") return " (write false)";
    return "";
  }
  value = text == "true";
  return std::nullopt;
}

std::optional<std::string> parse_int(std::string_view text, int64_t& value) {
  if (has_leading_zero(text)) return " (leading zeros are not allowed: octal or decimal?)";
  int64_t parsed = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), parsed);
  if (end == text.data() + text.size()) {
    if (code == std::errc::result_out_of_range) return " (it does not fit into 64 bits)";
    if (code == std::errc()) {
      value = parsed;
      return std::nullopt;
    }
  }
  double number = 0;
  const bool decimal = looks_decimal(text) && !parse_double(text, number);
  if (decimal && number == std::floor(number) && std::abs(number) < 9e15) return fmt::format(" (write {:.0f})", number);
  if (text.starts_with("0x") || text.starts_with("0o") || text.starts_with("0b")) return " (write it in decimal)";
  return "";
}

std::optional<std::string> parse_double(std::string_view text, double& value) {
  if (has_leading_zero(text)) return " (leading zeros are not allowed: octal or decimal?)";
  if (!looks_decimal(text)) {
    std::string lower = to_lower(text);
    if (!lower.empty() && (lower[0] == '-' || lower[0] == '+')) lower.erase(0, 1);
    if (lower == ".nan" || lower == "nan" || lower == ".inf" || lower == "inf" || lower == "infinity")
      return " (it must be finite)";
    return "";
  }
  double parsed = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), parsed);
  if (code == std::errc::result_out_of_range) return " (it does not fit into a double)";
  if (code != std::errc() || end != text.data() + text.size()) return "";
  value = parsed;
  return std::nullopt;
}

std::string double_text(double value) {
  if (!std::isfinite(value)) fail<ConfigError>("{} cannot be written into a config: it must be finite", value);
  return fmt::format("{}", value);
}

std::string string_text(std::string_view text) {
  if (is_plain(text)) return std::string(text);
  if (find_invalid_utf8(text) != std::string_view::npos || text.find('\0') != std::string_view::npos)
    fail<ConfigError>("'{}' cannot be written into a config: it is not valid UTF-8 text", printable(text));
  std::string out = "\"";
  for (size_t i = 0; i < text.size();) {
    const size_t length = utf8_length(text, i);
    const std::string_view sequence = text.substr(i, length);
    i += length;
    const auto c = static_cast<unsigned char>(sequence[0]);
    if (c == '"' || c == '\\')
      out += fmt::format("\\{}", sequence);
    else if (c == '\n')
      out += "\\n";
    else if (c == '\t')
      out += "\\t";
    else if (c < 0x20 || c == 0x7F)
      out += fmt::format("\\x{:02X}", c);
    else if (c == 0xC2 && static_cast<unsigned char>(sequence[1]) < 0xA0)  // C1 controls, among them YAML's NEL
      out += fmt::format("\\x{:02X}", static_cast<unsigned char>(sequence[1]));
    else if (sequence == "\u2028")
      out += "\\u2028";  // YAML 1.1 line breaks
    else if (sequence == "\u2029")
      out += "\\u2029";
    else if (sequence == "\ufeff")
      out += "\\uFEFF";
    else
      out += sequence;
  }
  return out + "\"";
}

size_t find_invalid_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const size_t length = utf8_length(text, i);
    if (length == 0) return i;
    i += length;
  }
  return std::string_view::npos;
}

std::string printable(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    if (out.size() > 76) return out + "...";
    const size_t length = utf8_length(text, i);
    const auto c = static_cast<unsigned char>(text[i]);
    if (c == '\n')
      out += "\\n";
    else if (length == 0 || c < 0x20 || c == 0x7F)
      out += fmt::format("\\x{:02x}", c);
    else
      out += text.substr(i, length);
    i += length == 0 ? 1 : length;
  }
  return out;
}

}  // namespace fewstep::config
