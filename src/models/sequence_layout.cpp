#include "src/models/sequence_layout.h"

#include "src/models/json_fields.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::models {

std::vector<int64_t> SequenceLayout::prompt(std::span<const int64_t> caption_ids) const {
  std::vector<int64_t> row(static_cast<size_t>(prompt_length()), pad_id);
  const size_t n = std::min(caption_ids.size(), static_cast<size_t>(caption_length));
  for (size_t i = 0; i < n; ++i) {
    const int64_t id = caption_ids[i];
    if (id < 0 || id >= text_vocab) fail<DataError>("caption token {} is outside the text vocabulary [0, {})", id, text_vocab);
    row[i] = id;
  }
  row.back() = boi();
  return row;
}

std::vector<int64_t> SequenceLayout::unconditional_prompt() const { return prompt({}); }

Tensor SequenceLayout::prompts(const std::vector<std::vector<int64_t>>& captions) const {
  Tensor out = at::empty({static_cast<int64_t>(captions.size()), prompt_length()}, at::kLong);
  int64_t* to = out.mutable_data_ptr<int64_t>();
  for (const auto& caption : captions) {
    const auto row = prompt(caption);
    to = std::copy(row.begin(), row.end(), to);
  }
  return out;
}

Tensor SequenceLayout::tokens(const Tensor& indices) const {
  const Tensor grid = indices.reshape({indices.size(0), -1});
  expect_shape(grid, {-1, grid_height * grid_width}, "image codes");
  if (!row_end) return grid;
  return at::constant_pad_nd(grid.view({-1, grid_height, grid_width}), {0, 1}, codebook).flatten(1);
}

Tensor SequenceLayout::indices(const Tensor& tokens) const {
  expect_shape(tokens, {-1, image_length()}, "image tokens");
  return tokens.reshape({-1, grid_height, row_length()}).narrow(2, 0, grid_width);
}

Tensor SequenceLayout::rows(const Tensor& prompts, const Tensor& indices) const {
  expect_shape(prompts, {-1, prompt_length()}, "prompts");
  return at::cat({prompts, tokens(indices) + image_id(0)}, 1);
}

Tensor SequenceLayout::forced_codes() const {
  Tensor forced = at::full({grid_height, row_length()}, -1, at::kLong);
  if (row_end) forced.select(1, grid_width).fill_(codebook);
  return forced.flatten();
}

SequenceLayout SequenceLayout::from_json(const Json& json, std::string_view where) {
  const JsonFields fields(json, where);
  for (const char* key : {"text_vocab", "pad_id", "codebook", "caption_length", "grid_height", "grid_width"})
    if (fields.find(key) == nullptr) fail<ConfigError>("{}: '{}' is missing", where, key);
  SequenceLayout l;
  fields.get("text_vocab", l.text_vocab);
  fields.get("pad_id", l.pad_id);
  fields.get("codebook", l.codebook);
  fields.get("caption_length", l.caption_length);
  fields.get("grid_height", l.grid_height);
  fields.get("grid_width", l.grid_width);
  fields.get("row_end", l.row_end);
  l.validate(where);
  return l;
}

Json SequenceLayout::to_json() const {
  return Json{{"text_vocab", text_vocab},         {"pad_id", pad_id},           {"codebook", codebook},
              {"caption_length", caption_length}, {"grid_height", grid_height}, {"grid_width", grid_width},         {"row_end", row_end}};
}

void SequenceLayout::validate(std::string_view where) const {
  if (text_vocab < 1 || codebook < 1) fail<ConfigError>("{}: text_vocab ({}) and codebook ({}) must be at least 1", where, text_vocab, codebook);
  if (pad_id < 0 || pad_id >= text_vocab) fail<ConfigError>("{}: pad_id {} is outside the text vocabulary [0, {})", where, pad_id, text_vocab);
  if (caption_length < 0 || grid_height < 1 || grid_width < 1)
    fail<ConfigError>("{}: caption_length {}, grid {} x {}: not a layout", where, caption_length, grid_height, grid_width);
}

void SequenceLayout::check(int64_t tokenizer_vocab, int64_t codebook_size, int64_t transformer_vocab, std::string_view where) const {
  if (tokenizer_vocab >= 0 && tokenizer_vocab != text_vocab)
    fail<ConfigError>("{}: the text tokenizer has {} tokens but the sequence layout was made for {}: use the tokenizer the "
                      "transformer was trained with", where, tokenizer_vocab, text_vocab);
  if (codebook_size >= 0 && codebook_size != codebook)
    fail<ConfigError>("{}: the VQ model has {} codes but the sequence layout was made for {}: use the VQ model the "
                      "transformer was trained with", where, codebook_size, codebook);
  if (transformer_vocab >= 0 && transformer_vocab != vocab_size())
    fail<ConfigError>("{}: the transformer has vocab_size {} but the layout needs {} ({} text tokens + 1 + {} image codes{})", where,
                      transformer_vocab, vocab_size(), text_vocab, codebook, row_end ? " + 1 row end" : "");
}

}  // namespace fewstep::models
