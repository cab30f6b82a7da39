#include "src/text/clip_tokenizer.h"

#include <array>
#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/json.h"
#include "src/text/cleaning.h"
#include "src/text/unicode.h"

namespace fewstep::text {
namespace {

constexpr std::string_view kWhere = "tokenizer_config.json";

// The pieces of CLIP's pattern: contractions, runs of letters, single digits, runs of signs. White space belongs to
// none.
//   's|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+
size_t piece_at(std::string_view text, size_t begin) {
  for (std::string_view c : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"})
    if (text.substr(begin).starts_with(c)) return c.size();
  const CodePoint first = code_point_at(text, begin);
  const CharClass kind = char_class(first.value);
  size_t end = begin + first.bytes;
  if (kind == CharClass::number) return end - begin;
  while (end < text.size()) {
    const CodePoint next = code_point_at(text, end);
    if (char_class(next.value) != kind) break;
    end += next.bytes;
  }
  return end - begin;
}

}  // namespace

std::string clean_for_clip(std::string_view text, ClipCleaning cleaning) {
  if (cleaning == ClipCleaning::huggingface) return to_lower(collapse_white_space(normalise_nfc(text)));
  return to_lower(collapse_white_space(unescape_html(unescape_html(fix_text(text)))), /*final_sigma=*/true);
}

ClipTokenizer ClipTokenizer::load(const std::filesystem::path& folder) {
  ClipTokenizer out(BpeTokenizer::load(folder, {.end_of_word = "</w>", .special_tokens = std::string(kWhere)}));
  const Json config = read_json(folder / kWhere);
  // Some files carry 1e30 for "no limit": CLIP's is 77 then.
  if (const auto it = config.find("model_max_length"); it != config.end() && it->is_number()) {
    const double length = it->get<double>();
    if (length < 3)
      fail<DataError>("{}: model_max_length {} leaves no room for a text", (folder / kWhere).string(), length);
    if (length < 1e6) out.max_length_ = static_cast<int64_t>(length);
  }
  return out;
}

void ClipTokenizer::encode_plain(std::string_view cleaned, std::vector<int64_t>& out) const {
  for (size_t begin = 0; begin < cleaned.size();) {
    const CodePoint c = code_point_at(cleaned, begin);
    if (char_class(c.value) == CharClass::space) {
      begin += c.bytes;
      continue;
    }
    const size_t size = piece_at(cleaned, begin);
    bpe_.encode_word(cleaned.substr(begin, size), out);
    begin += size;
  }
}

std::vector<int64_t> ClipTokenizer::encode(std::string_view text, ClipCleaning cleaning) const {
  std::vector<int64_t> out;
  if (cleaning == ClipCleaning::open_clip) {
    encode_plain(clean_for_clip(text, cleaning), out);
    return out;
  }
  const std::array<int64_t, 2> specials = {bpe_.bos_id(), bpe_.eos_id()};
  while (!text.empty()) {  // special tokens are found in the text as it is, everything between them is cleaned
    size_t at = text.size(), length = 0;
    int64_t id = -1;
    for (const int64_t special : specials)
      if (const size_t found = text.find(bpe_.token(special)); found < at)
        at = found, id = special, length = bpe_.token(special).size();
    encode_plain(clean_for_clip(text.substr(0, at), cleaning), out);
    if (id >= 0) out.push_back(id);
    text.remove_prefix(at + length);
  }
  return out;
}

ClipTokenizer::Padded ClipTokenizer::encode_padded(std::string_view text, ClipCleaning cleaning) const {
  std::vector<int64_t> ids = encode(text, cleaning);
  Padded out;
  const auto room = static_cast<size_t>(max_length_ - 2);
  out.truncated = ids.size() > room;
  if (out.truncated) ids.resize(room);
  out.ids.reserve(static_cast<size_t>(max_length_));
  out.ids.push_back(start_id());
  out.ids.insert(out.ids.end(), ids.begin(), ids.end());
  out.ids.push_back(end_id());
  out.ids.resize(static_cast<size_t>(max_length_), pad_id());
  return out;
}

std::string ClipTokenizer::decode(std::span<const int64_t> ids) const {
  std::string out = bpe_.decode(ids);
  const auto is_blank = [](char c) { return c == ' '; };
  while (!out.empty() && is_blank(out.back())) out.pop_back();
  size_t first = 0;
  while (first < out.size() && is_blank(out[first])) ++first;
  return out.substr(first);
}

}  // namespace fewstep::text
