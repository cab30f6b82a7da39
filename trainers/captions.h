// Captions to token ids, for trainers that read text.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "datasets/dataset.h"
#include "src/text/bpe.h"

namespace fewstep {

// A byte-level BPE trained on the captions of (at most `samples` of) the data set; the same on every rank.
text::BpeTokenizer train_tokenizer(const Dataset& dataset, int64_t vocab_size, uint64_t seed, int64_t samples = 20000);
std::vector<std::vector<int64_t>> encode_all(const text::BpeTokenizer& tokenizer, const std::vector<std::string>& captions);
// int64 [N, length], cut or padded with <pad>.
Tensor pad_ids(const std::vector<std::vector<int64_t>>& ids, int64_t length, int64_t pad_id);

}  // namespace fewstep
