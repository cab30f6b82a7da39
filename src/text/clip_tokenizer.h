// CLIP's tokenizer: lower-cased byte-level BPE whose words end in "</w>", with the published files vocab.json and
// merges.txt.
#pragma once
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "src/text/bpe.h"

namespace fewstep::text {

// How a text is prepared; the two implementations in use differ on curly quotes, entities, ligatures and signs of
// width.
//   huggingface  transformers' CLIPTokenizer: NFC, runs of white space to one blank, lower case of every character by
//   itself open_clip    open_clip and OpenAI's own: ftfy, HTML entities, then Python's lower(). Of ftfy everything but
//   the repair of
//                wrongly decoded text ("cafÃ©"), of the entities the numeric ones and the names of HTML 2 (amp lt gt
//                quot nbsp)
enum class ClipCleaning { huggingface, open_clip };
std::string clean_for_clip(std::string_view text, ClipCleaning cleaning);

class ClipTokenizer {
 public:
  // vocab.json, merges.txt, tokenizer_config.json (bos, eos and pad token, model_max_length). DataError with file and
  // reason.
  static ClipTokenizer load(const std::filesystem::path& folder);

  // Without <|startoftext|> and <|endoftext|>. With `huggingface` a text that spells them gets their ids, as in
  // transformers.
  std::vector<int64_t> encode(std::string_view text, ClipCleaning cleaning = ClipCleaning::huggingface) const;
  struct Padded {
    std::vector<int64_t> ids;  // max_length() of them: start, text, end, padding
    bool truncated = false;    // the text was cut; the end token is kept
  };
  Padded encode_padded(std::string_view text, ClipCleaning cleaning = ClipCleaning::huggingface) const;
  std::string decode(std::span<const int64_t> ids) const;  // words parted by blanks, special tokens left out

  int64_t max_length() const { return max_length_; }
  int64_t start_id() const { return bpe_.bos_id(); }
  int64_t end_id() const { return bpe_.eos_id(); }
  int64_t pad_id() const { return bpe_.pad_id(); }
  int64_t vocab_size() const { return bpe_.vocab_size(); }

 private:
  explicit ClipTokenizer(BpeTokenizer bpe) : bpe_(std::move(bpe)) {}
  void encode_plain(std::string_view cleaned, std::vector<int64_t>& out) const;
  BpeTokenizer bpe_;
  int64_t max_length_ = 77;
};

}  // namespace fewstep::text
