#include "src/text/cleaning.h"

#include <utf8proc.h>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "src/text/unicode.h"

namespace fewstep::text {
namespace {

void append(const CodePoint& c, std::string& out) {
  if (c.value >= kInvalid)
    out.push_back(static_cast<char>(c.value - kInvalid));
  else
    append_utf8(c.value, out);
}

std::string map(std::string_view text, utf8proc_option_t options) {
  utf8proc_uint8_t* raw = nullptr;
  const auto size = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                 static_cast<utf8proc_ssize_t>(text.size()), &raw, options);
  const std::unique_ptr<utf8proc_uint8_t, void (*)(void*)> owner(raw, std::free);
  return size < 0 ? std::string(text)
                  : std::string(reinterpret_cast<const char*>(raw), static_cast<size_t>(size));  // < 0: not UTF-8
}

// f(code point, out) for every code point.
template <class F>
std::string each(std::string_view text, F f) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const CodePoint c = code_point_at(text, i);
    f(c, out);
    i += c.bytes;
  }
  return out;
}

bool is_cased(uint32_t c) {
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  return category == UTF8PROC_CATEGORY_LU || category == UTF8PROC_CATEGORY_LL || category == UTF8PROC_CATEGORY_LT;
}
bool is_case_ignorable(uint32_t c) {
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  return category == UTF8PROC_CATEGORY_MN || category == UTF8PROC_CATEGORY_ME || category == UTF8PROC_CATEGORY_CF ||
         category == UTF8PROC_CATEGORY_LM || category == UTF8PROC_CATEGORY_SK || c == '\'' || c == '.' || c == ':' ||
         c == 0xB7 || c == 0x2019;
}

// Unicode's Final_Sigma: a cased letter before, none after, ignorable ones skipped.
bool ends_word(const std::vector<uint32_t>& text, size_t at) {
  size_t before = at, after = at + 1;
  while (before > 0 && is_case_ignorable(text[before - 1])) --before;
  while (after < text.size() && is_case_ignorable(text[after])) ++after;
  return before > 0 && is_cased(text[before - 1]) && !(after < text.size() && is_cased(text[after]));
}

// Windows-1252 in the places of the C1 control characters; 0: undefined there.
constexpr std::array<uint16_t, 32> kWindows1252 = {0x20AC, 0,      0x201A, 0x0192, 0x201E, 0x2026, 0x2020, 0x2021,
                                                   0x02C6, 0x2030, 0x0160, 0x2039, 0x0152, 0,      0x017D, 0,
                                                   0,      0x2018, 0x2019, 0x201C, 0x201D, 0x2022, 0x2013, 0x2014,
                                                   0x02DC, 0x2122, 0x0161, 0x203A, 0x0153, 0,      0x017E, 0x0178};

struct Ligature {
  uint32_t value;
  std::string_view letters;
};
constexpr Ligature kLigatures[] = {
    {0x132, "IJ"},        {0x133, "ij"},        {0x149, "\xCA\xBCn"},  {0x1F1, "DZ"},  {0x1F2, "Dz"},  {0x1F3, "dz"},
    {0x1C4, "D\xC5\xBD"}, {0x1C5, "D\xC5\xBE"}, {0x1C6, "d\xC5\xBE"},  {0x1C7, "LJ"},  {0x1C8, "Lj"},  {0x1C9, "lj"},
    {0x1CA, "NJ"},        {0x1CB, "Nj"},        {0x1CC, "nj"},         {0xFB00, "ff"}, {0xFB01, "fi"}, {0xFB02, "fl"},
    {0xFB03, "ffi"},      {0xFB04, "ffl"},      {0xFB05, "\xC5\xBFt"}, {0xFB06, "st"}};

bool is_control(uint32_t c) {
  return c <= 0x08 || c == 0x0B || (c >= 0x0E && c <= 0x1F) || c == 0x7F || (c >= 0x206A && c <= 0x206F) ||
         c == 0xFEFF || (c >= 0xFFF9 && c <= 0xFFFC);
}

void fix_character(const CodePoint& c, std::string& out) {
  uint32_t v = c.value;
  if (v >= 0x80 && v < 0xA0 && kWindows1252[v - 0x80] != 0) v = kWindows1252[v - 0x80];
  for (const Ligature& l : kLigatures)
    if (l.value == v) {
      out += l.letters;
      return;
    }
  if (v == 0x3000) v = ' ';
  if (v == 0x2BC || (v >= 0x2018 && v <= 0x201B)) v = '\'';
  if (v >= 0x201C && v <= 0x201F) v = '"';
  if (v == '\r' || v == 0x2028 || v == 0x2029 || v == 0x85) v = '\n';
  if (is_control(v)) return;
  std::string one;
  append({v, c.bytes}, one);
  out += v >= 0xFF01 && v <= 0xFFEF
             ? map(one, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT))
             : one;
}

// ESC [ digits and semicolons, then a letter: colours and cursor moves of terminals.
std::string remove_terminal_escapes(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    size_t end = i + 2;
    if (text[i] == '\x1B' && i + 1 < text.size() && text[i + 1] == '[') {
      while (end < text.size() && (std::isdigit(static_cast<unsigned char>(text[end])) || text[end] == ';')) ++end;
      if (end < text.size() && std::isalpha(static_cast<unsigned char>(text[end]))) {
        i = end + 1;
        continue;
      }
    }
    out.push_back(text[i++]);
  }
  return out;
}

// The code point of "&...;" without its signs, or 0.
uint32_t entity(std::string_view name) {
  struct Named {
    std::string_view name;
    uint32_t value;
  };
  constexpr Named kNamed[] = {{"amp", '&'}, {"lt", '<'}, {"gt", '>'}, {"quot", '"'}, {"apos", '\''}, {"nbsp", 0xA0}};
  for (const Named& n : kNamed)
    if (n.name == name) return n.value;
  if (name.size() < 2 || name[0] != '#') return 0;
  const bool hex = name[1] == 'x' || name[1] == 'X';
  const std::string digits(name.substr(hex ? 2 : 1));
  if (digits.empty() || digits.size() > 7) return 0;
  char* end = nullptr;
  const auto value = static_cast<uint32_t>(std::strtoul(digits.c_str(), &end, hex ? 16 : 10));
  return *end == '\0' && value < kInvalid && !(value >= 0xD800 && value < 0xE000) ? value : 0;
}

}  // namespace

std::string normalise_nfc(std::string_view text) {
  return map(text, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
}

std::string to_lower(std::string_view text, bool final_sigma) {
  std::vector<CodePoint> points;
  std::vector<uint32_t> values;
  for (size_t i = 0; i < text.size(); i += points.back().bytes)
    points.push_back(code_point_at(text, i)), values.push_back(points.back().value);
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < points.size(); ++i) {
    const uint32_t v = values[i];
    if (v >= kInvalid)
      append(points[i], out);
    else if (v == 0x130)  // the only letter whose lower case is two characters
      out += "i\xCC\x87";
    else if (v == 0x3A3 && final_sigma && ends_word(values, i))
      out += "\xCF\x82";
    else
      append_utf8(static_cast<uint32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(v))), out);
  }
  return out;
}

std::string collapse_white_space(std::string_view text) {
  std::string out;
  bool pending = false;
  for (size_t i = 0; i < text.size();) {
    const CodePoint c = code_point_at(text, i);
    if (char_class(c.value) == CharClass::space) {
      pending = !out.empty();
    } else {
      if (pending) out.push_back(' ');
      pending = false;
      out.append(text.substr(i, c.bytes));
    }
    i += c.bytes;
  }
  return out;
}

std::string unescape_html(std::string_view text) {
  constexpr size_t kLongest = 10;
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const size_t end = text[i] == '&' ? text.find(';', i) : std::string_view::npos;
    const uint32_t value =
        end != std::string_view::npos && end - i <= kLongest ? entity(text.substr(i + 1, end - i - 1)) : 0;
    if (value == 0) {
      out.push_back(text[i++]);
      continue;
    }
    append_utf8(value, out);
    i = end + 1;
  }
  return out;
}

std::string fix_text(std::string_view text) {
  // ftfy leaves entities alone where the text looks like HTML.
  std::string out = text.find('<') == std::string_view::npos ? unescape_html(text) : std::string(text);
  out = remove_terminal_escapes(out);
  for (size_t at = 0; (at = out.find("\r\n", at)) != std::string::npos;) out.erase(at, 1);
  return normalise_nfc(each(out, fix_character));
}

}  // namespace fewstep::text
