// Byte-level byte-pair encoding in the GPT-2 form (Sennrich et al. 2016; Radford et al. 2019): every byte is a symbol,
// so any text has ids and comes back exactly; there is no unknown token.
//
// Pre-tokenisation is GPT-2's pattern: 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ : a
// word, a number or a run of signs takes one leading space with it, and merges never cross the pieces. Special tokens
// written out in a text ("<eos>") are plain text: a caption cannot end itself.
//
// Files are the standard vocab.json, merges.txt, tokenizer_config.json and special_tokens_map.json; Hugging Face's
// GPT2Tokenizer and tokenizers.ByteLevelBPETokenizer read them and give the same ids (tests/golden/bpe).
#pragma once
#include <array>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace fewstep::text {

// The pieces of the pattern above, in order; together they are the whole text.
std::vector<std::string_view> split_words(std::string_view text);

struct BpeFormat {
  std::string end_of_word;  // CLIP's vocabularies: "</w>" ends the last symbol of every word
  std::string special_tokens = "special_tokens_map.json";  // file that names bos_token, eos_token and pad_token
};

class BpeTokenizer {
 public:
  // Deterministic: the most frequent pair first, ties by lexicographic order of (left, right). Ids: <pad> 0, <bos> 1,
  // <eos> 2, the 256 bytes, then merges. Stops early when no pair occurs twice. ConfigError: vocab_size below 259.
  static BpeTokenizer train(const std::vector<std::string>& corpus, int64_t vocab_size);
  static BpeTokenizer load(const std::filesystem::path& folder, const BpeFormat& format = {});  // DataError with file and reason
  void save(const std::filesystem::path& folder) const;

  std::vector<int64_t> encode(std::string_view text) const;  // without <bos> and <eos>; thread-safe
  void encode_word(std::string_view word, std::vector<int64_t>& out) const;  // one piece of a pre-tokenised text
  std::string decode(std::span<const int64_t> ids) const;    // skips special tokens; Error on ids out of range
  int64_t vocab_size() const { return static_cast<int64_t>(tokens_.size()); }
  int64_t pad_id() const { return pad_; }
  int64_t bos_id() const { return bos_; }
  int64_t eos_id() const { return eos_; }
  const std::string& token(int64_t id) const;  // in the printable alphabet of vocab.json

 private:
  struct Merge {
    int64_t rank, result;
  };
  using Pair = std::pair<int64_t, int64_t>;
  static uint64_t key(Pair pair) {
    return (static_cast<uint64_t>(pair.first) << 32) | static_cast<uint64_t>(pair.second);
  }
  void add_special_tokens_and_bytes();
  void add_merge(Pair pair, int64_t result);
  std::array<int64_t, 256> index_bytes(const std::string& origin, const std::string& suffix) const;
  void load_vocabulary(const std::filesystem::path& path);
  void load_merges(const std::filesystem::path& path);
  void load_special_tokens(const std::filesystem::path& path);

  std::vector<std::string> tokens_;  // by id
  std::unordered_map<std::string, int64_t> ids_;
  std::array<int64_t, 256> byte_ids_{}, last_byte_ids_{};  // the latter with the end of the word
  std::string end_of_word_;
  std::vector<Pair> merges_;  // by rank
  std::unordered_map<uint64_t, Merge> merge_of_;
  int64_t pad_ = -1, bos_ = -1, eos_ = -1;
};

}  // namespace fewstep::text
