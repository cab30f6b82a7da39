#include "src/text/bpe.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/json.h"
#include "src/base/text.h"
#include "src/text/unicode.h"

namespace fewstep::text {
namespace {

namespace fs = std::filesystem;
constexpr std::string_view kPad = "<pad>", kBos = "<bos>", kEos = "<eos>";

// GPT-2's printable alphabet: visible Latin-1 bytes stand for themselves, the others for U+0100, U+0101, ... in order.
const std::array<std::string, 256>& byte_symbols() {
  static const std::array<std::string, 256> symbols = [] {
    std::array<std::string, 256> table;
    uint32_t next = 0x100;
    for (uint32_t b = 0; b < 256; ++b) {
      const bool visible = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      append_utf8(visible ? b : next++, table[b]);
    }
    return table;
  }();
  return symbols;
}

const std::unordered_map<std::string, uint8_t>& symbol_bytes() {
  static const std::unordered_map<std::string, uint8_t> table = [] {
    std::unordered_map<std::string, uint8_t> inverse;
    for (size_t b = 0; b < 256; ++b) inverse[byte_symbols()[b]] = static_cast<uint8_t>(b);
    return inverse;
  }();
  return table;
}

// Length of an English contraction at the front of `text` ('s 't 're 've 'm 'll 'd), or 0.
size_t contraction(std::string_view text) {
  for (std::string_view c : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"})
    if (text.starts_with(c)) return c.size();
  return 0;
}

// End of the run of characters of one class that starts at `position`.
size_t end_of_run(std::string_view text, size_t position, CharClass kind) {
  while (position < text.size()) {
    const CodePoint c = code_point_at(text, position);
    if (char_class(c.value) != kind) break;
    position += c.bytes;
  }
  return position;
}

// \s+(?!\S) before a word leaves the last space to the word; a single space there is a piece of its own (\s+).
size_t end_of_spaces(std::string_view text, size_t begin) {
  const size_t end = end_of_run(text, begin, CharClass::space);
  if (end == text.size()) return end;
  size_t last = begin;
  for (size_t p = begin; p < end; p += code_point_at(text, p).bytes) last = p;
  return last > begin ? last : end;
}

}  // namespace

std::vector<std::string_view> split_words(std::string_view text) {
  std::vector<std::string_view> words;
  for (size_t begin = 0; begin < text.size();) {
    size_t end = begin + contraction(text.substr(begin));
    if (end == begin) {
      const size_t first = text[begin] == ' ' && begin + 1 < text.size() ? begin + 1 : begin;
      const CharClass kind = char_class(code_point_at(text, first).value);
      end = kind == CharClass::space ? end_of_spaces(text, begin) : end_of_run(text, first, kind);
    }
    words.push_back(text.substr(begin, end - begin));
    begin = end;
  }
  return words;
}

// --- building ---

void BpeTokenizer::add_special_tokens_and_bytes() {
  for (std::string_view special : {kPad, kBos, kEos}) tokens_.emplace_back(special);
  pad_ = 0, bos_ = 1, eos_ = 2;
  // The alphabet's own order, by code point, as other trainers write it.
  std::vector<std::string> symbols(byte_symbols().begin(), byte_symbols().end());
  std::sort(symbols.begin(), symbols.end());
  tokens_.insert(tokens_.end(), symbols.begin(), symbols.end());
  for (size_t id = 0; id < tokens_.size(); ++id) ids_[tokens_[id]] = static_cast<int64_t>(id);
  byte_ids_ = last_byte_ids_ = index_bytes("the byte alphabet", "");
}

std::array<int64_t, 256> BpeTokenizer::index_bytes(const std::string& origin, const std::string& suffix) const {
  std::array<int64_t, 256> out{};
  for (size_t b = 0; b < 256; ++b) {
    const auto found = ids_.find(byte_symbols()[b] + suffix);
    if (found == ids_.end())
      fail<DataError>("{}: no token for byte {} ('{}'): not a byte-level vocabulary", origin, b, byte_symbols()[b] + suffix);
    out[b] = found->second;
  }
  return out;
}

void BpeTokenizer::add_merge(Pair pair, int64_t result) {
  merge_of_[key(pair)] = {static_cast<int64_t>(merges_.size()), result};
  merges_.push_back(pair);
}

const std::string& BpeTokenizer::token(int64_t id) const {
  if (id < 0 || id >= vocab_size()) fail("token id {} is outside the vocabulary of {}", id, vocab_size());
  return tokens_[static_cast<size_t>(id)];
}

// --- use ---

// Applies the merge of lowest rank, everywhere in the word, until none applies.
void BpeTokenizer::encode_word(std::string_view word, std::vector<int64_t>& out) const {
  std::vector<int64_t> symbols;
  symbols.reserve(word.size());
  for (char c : word) symbols.push_back(byte_ids_[static_cast<uint8_t>(c)]);
  if (!word.empty()) symbols.back() = last_byte_ids_[static_cast<uint8_t>(word.back())];
  while (symbols.size() > 1) {
    Merge best{std::numeric_limits<int64_t>::max(), -1};
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto found = merge_of_.find(key({symbols[i], symbols[i + 1]}));
      if (found != merge_of_.end() && found->second.rank < best.rank) best = found->second;
    }
    if (best.result < 0) break;
    const Pair pair = merges_[static_cast<size_t>(best.rank)];
    size_t kept = 0;
    for (size_t i = 0; i < symbols.size(); ++kept) {
      const bool here = i + 1 < symbols.size() && symbols[i] == pair.first && symbols[i + 1] == pair.second;
      symbols[kept] = here ? best.result : symbols[i];
      i += here ? 2 : 1;
    }
    symbols.resize(kept);
  }
  out.insert(out.end(), symbols.begin(), symbols.end());
}

std::vector<int64_t> BpeTokenizer::encode(std::string_view text) const {
  std::vector<int64_t> out;
  for (std::string_view word : split_words(text)) encode_word(word, out);
  return out;
}

std::string BpeTokenizer::decode(std::span<const int64_t> ids) const {
  std::string out;
  for (int64_t id : ids) {
    if (id == pad_ || id == bos_ || id == eos_) continue;
    std::string_view symbols = token(id);
    const bool ends_word = !end_of_word_.empty() && symbols.ends_with(end_of_word_);
    if (ends_word) symbols.remove_suffix(end_of_word_.size());
    for (size_t i = 0; i < symbols.size();) {
      const size_t bytes = code_point_at(symbols, i).bytes;
      const auto found = symbol_bytes().find(std::string(symbols.substr(i, bytes)));
      if (found != symbol_bytes().end()) {
        out.push_back(static_cast<char>(found->second));
      } else {  // an added token of another vocabulary: its text is itself
        out.append(symbols.substr(i, bytes));
      }
      i += bytes;
    }
    if (ends_word) out.push_back(' ');
  }
  return out;
}

// --- files ---

void BpeTokenizer::save(const fs::path& folder) const {
  make_directories(folder);
  Json vocabulary = Json::object();
  for (size_t id = 0; id < tokens_.size(); ++id) vocabulary[tokens_[id]] = id;
  write_json(folder / "vocab.json", vocabulary);
  std::string merges = "#version: 0.2\n";
  for (const Pair& pair : merges_) merges += fmt::format("{} {}\n", token(pair.first), token(pair.second));
  write_text_atomic(folder / "merges.txt", merges);
  const Json special = {{"bos_token", token(bos_)}, {"eos_token", token(eos_)}, {"pad_token", token(pad_)}};
  write_json(folder / "special_tokens_map.json", special);
  Json config = {{"tokenizer_class", "GPT2Tokenizer"}, {"add_prefix_space", false}, {"unk_token", nullptr}};
  config.update(special);
  write_json(folder / "tokenizer_config.json", config);
}

void BpeTokenizer::load_vocabulary(const fs::path& path) {
  const Json vocabulary = read_json(path);
  if (!vocabulary.is_object()) fail<DataError>("{}: expected an object of token: id", path.string());
  tokens_.assign(vocabulary.size(), "");
  for (const auto& [token, id] : vocabulary.items()) {
    if (!id.is_number_integer())
      fail<DataError>("{}: the id of '{}' is {}, not an integer", path.string(), token, id.dump());
    const int64_t i = id.get<int64_t>();
    if (i < 0 || i >= vocab_size())
      fail<DataError>("{}: the id of '{}' is {}, but {} tokens have ids 0 to {}", path.string(), token, i, vocab_size(),
                      vocab_size() - 1);
    std::string& place = tokens_[static_cast<size_t>(i)];
    if (!place.empty()) fail<DataError>("{}: '{}' and '{}' both have id {}", path.string(), place, token, i);
    if (token.empty()) fail<DataError>("{}: id {} has an empty token", path.string(), i);
    place = token;
    ids_[token] = i;
  }
  byte_ids_ = index_bytes(path.string(), "");
  last_byte_ids_ = index_bytes(path.string(), end_of_word_);
}

void BpeTokenizer::load_merges(const fs::path& path) {
  const std::vector<std::string> lines = split(read_text(path), '\n');
  for (size_t n = 0; n < lines.size(); ++n) {
    std::string_view line = lines[n];
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty() || (n == 0 && line.starts_with("#version"))) continue;
    const std::vector<std::string> parts = split(line, ' ');
    if (parts.size() != 2) fail<DataError>("{}:{}: expected two symbols, got '{}'", path.string(), n + 1, line);
    std::array<int64_t, 3> ids{};
    const std::array<std::string, 3> symbols = {parts[0], parts[1], parts[0] + parts[1]};
    for (size_t i = 0; i < 3; ++i) {
      const auto found = ids_.find(symbols[i]);
      if (found == ids_.end()) fail<DataError>("{}:{}: '{}' is not in vocab.json", path.string(), n + 1, symbols[i]);
      ids[i] = found->second;
    }
    if (merge_of_.contains(key({ids[0], ids[1]})))
      fail<DataError>("{}:{}: '{}' is given twice", path.string(), n + 1, line);
    add_merge({ids[0], ids[1]}, ids[2]);
  }
}

void BpeTokenizer::load_special_tokens(const fs::path& path) {
  const Json map = read_json(path);
  if (!map.is_object()) fail<DataError>("{}: expected an object", path.string());
  const auto find = [&](const char* name) {
    const Json entry = map.contains(name) ? map[name] : Json();
    const Json text = entry.is_object() && entry.contains("content") ? entry["content"] : entry;
    if (!text.is_string()) fail<DataError>("{}: '{}' is missing or not a string", path.string(), name);
    const auto found = ids_.find(text.get<std::string>());
    if (found == ids_.end())
      fail<DataError>("{}: {} '{}' is not in vocab.json", path.string(), name, text.get<std::string>());
    return found->second;
  };
  pad_ = find("pad_token"), bos_ = find("bos_token"), eos_ = find("eos_token");
}

BpeTokenizer BpeTokenizer::load(const fs::path& folder, const BpeFormat& format) {
  BpeTokenizer tokenizer;
  tokenizer.end_of_word_ = format.end_of_word;
  tokenizer.load_vocabulary(folder / "vocab.json");
  tokenizer.load_merges(folder / "merges.txt");
  tokenizer.load_special_tokens(folder / format.special_tokens);
  return tokenizer;
}

}  // namespace fewstep::text
