// Training of the byte-pair merges: counts of neighbouring symbols are kept up to date word by word, and a heap with
// stale entries gives the most frequent pair, so a step costs the words that hold the pair, not the corpus.
#include <map>
#include <queue>
#include <set>
#include <tuple>

#include "src/base/error.h"
#include "src/text/bpe.h"

namespace fewstep::text {
namespace {

using Pair = std::pair<int64_t, int64_t>;

struct Word {
  std::vector<int64_t> symbols;
  int64_t count = 0;
};

// A heap entry; the greatest is merged next. Counts may be stale: the owner checks.
struct Candidate {
  int64_t count;
  std::string left, right;
  Pair pair;
  bool operator<(const Candidate& other) const {
    if (count != other.count) return count < other.count;
    return std::tie(left, right) > std::tie(other.left, other.right);  // ties: the smaller strings first
  }
};

class PairCounts {
 public:
  explicit PairCounts(const std::vector<std::string>& tokens) : tokens_(tokens) {}

  void add(const Word& word, size_t index, int64_t sign) {
    for (size_t i = 0; i + 1 < word.symbols.size(); ++i) {
      const Pair pair{word.symbols[i], word.symbols[i + 1]};
      counts_[pair] += sign * word.count;
      if (sign > 0) places_[pair].insert(index);
      touched_.insert(pair);
    }
  }
  void refresh_heap() {  // once a step: an entry for each pair whose count changed
    for (const Pair& pair : touched_)
      if (const int64_t count = counts_[pair]; count > 0)
        heap_.push({count, tokens_[static_cast<size_t>(pair.first)], tokens_[static_cast<size_t>(pair.second)], pair});
    touched_.clear();
  }
  // The most frequent pair that occurs at least twice; {-1, -1} when there is none.
  Pair best() {
    while (!heap_.empty()) {
      const Candidate top = heap_.top();
      if (top.count < 2) break;
      if (counts_[top.pair] == top.count) return top.pair;
      heap_.pop();
    }
    return {-1, -1};
  }
  std::set<size_t> take_places(Pair pair) { return std::exchange(places_[pair], {}); }

 private:
  const std::vector<std::string>& tokens_;
  std::map<Pair, int64_t> counts_;
  std::map<Pair, std::set<size_t>> places_;  // words that held the pair at some time
  std::set<Pair> touched_;
  std::priority_queue<Candidate> heap_;
};

void merge_in(std::vector<int64_t>& symbols, Pair pair, int64_t result) {
  size_t kept = 0;
  for (size_t i = 0; i < symbols.size(); ++kept) {
    const bool here = i + 1 < symbols.size() && Pair{symbols[i], symbols[i + 1]} == pair;
    symbols[kept] = here ? result : symbols[i];
    i += here ? 2 : 1;
  }
  symbols.resize(kept);
}

}  // namespace

BpeTokenizer BpeTokenizer::train(const std::vector<std::string>& corpus, int64_t vocab_size) {
  BpeTokenizer tokenizer;
  tokenizer.add_special_tokens_and_bytes();
  if (vocab_size < tokenizer.vocab_size())
    fail<ConfigError>("a byte-level vocabulary of {} is too small: special tokens and bytes alone are {}", vocab_size,
                      tokenizer.vocab_size());
  std::map<std::string, int64_t> occurrences;
  for (const std::string& text : corpus)
    for (std::string_view word : split_words(text)) ++occurrences[std::string(word)];

  std::vector<Word> words;
  PairCounts counts(tokenizer.tokens_);
  for (const auto& [text, count] : occurrences) {
    Word word{{}, count};
    for (char c : text) word.symbols.push_back(tokenizer.byte_ids_[static_cast<uint8_t>(c)]);
    counts.add(word, words.size(), +1);
    words.push_back(std::move(word));
  }
  while (tokenizer.vocab_size() < vocab_size) {
    counts.refresh_heap();
    const Pair pair = counts.best();
    if (pair.first < 0) break;
    const std::string joined = tokenizer.token(pair.first) + tokenizer.token(pair.second);
    // Two merges may spell the same token ("a"+"bc", "ab"+"c"): one id, as in vocab.json.
    const auto [place, is_new] = tokenizer.ids_.try_emplace(joined, tokenizer.vocab_size());
    if (is_new) tokenizer.tokens_.push_back(joined);
    tokenizer.add_merge(pair, place->second);
    for (size_t index : counts.take_places(pair)) {
      counts.add(words[index], index, -1);
      merge_in(words[index].symbols, pair, place->second);
      counts.add(words[index], index, +1);
    }
  }
  return tokenizer;
}

}  // namespace fewstep::text
