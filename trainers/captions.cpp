#include "trainers/captions.h"

#include "src/tensor/ops.h"

namespace fewstep {

text::BpeTokenizer train_tokenizer(const Dataset& dataset, int64_t vocab_size, uint64_t seed, int64_t samples) {
  std::vector<std::string> captions;
  const int64_t count = std::min(samples, dataset.size());
  // Evenly spread, and each epoch's wording in turn: a data set sorted by class is covered too.
  for (int64_t i = 0; i < count; ++i) captions.push_back(dataset.get(i * dataset.size() / count, seed, i % 8).caption);
  return text::BpeTokenizer::train(captions, vocab_size);
}

std::vector<std::vector<int64_t>> encode_all(const text::BpeTokenizer& tokenizer, const std::vector<std::string>& captions) {
  std::vector<std::vector<int64_t>> ids;
  ids.reserve(captions.size());
  for (const std::string& caption : captions) ids.push_back(tokenizer.encode(caption));
  return ids;
}

Tensor pad_ids(const std::vector<std::vector<int64_t>>& ids, int64_t length, int64_t pad_id) {
  Tensor out = at::full({static_cast<int64_t>(ids.size()), length}, pad_id, at::kLong);
  int64_t* row = out.mutable_data_ptr<int64_t>();
  for (const auto& sequence : ids) {
    std::copy_n(sequence.begin(), std::min<size_t>(sequence.size(), static_cast<size_t>(length)), row);
    row += length;
  }
  return out;
}

}  // namespace fewstep
