// The one place that knows how a caption and an image become one row of ids:
//   ids [0, text_vocab)              the BPE tokenizer's, its <pad> among them
//   boi = text_vocab                 begin of image
//   text_vocab + 1 + k               image code k
//   row = caption, cut or padded with <pad> to caption_length | boi | grid_height * grid_width image ids in raster order
#pragma once
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "src/base/json.h"
#include "src/tensor/tensor.h"

namespace fewstep::models {

struct SequenceLayout {
  int64_t text_vocab = 0;
  int64_t pad_id = 0;
  int64_t codebook = 0;
  int64_t caption_length = 16;
  int64_t grid_height = 8, grid_width = 8;

  int64_t boi() const { return text_vocab; }
  int64_t vocab_size() const { return text_vocab + 1 + codebook; }
  int64_t image_id(int64_t code) const { return text_vocab + 1 + code; }
  int64_t image_length() const { return grid_height * grid_width; }
  int64_t prompt_length() const { return caption_length + 1; }
  int64_t sequence_length() const { return prompt_length() + image_length(); }

  std::vector<int64_t> prompt(std::span<const int64_t> caption_ids) const;  // [P]
  std::vector<int64_t> unconditional_prompt() const;                        // all <pad>, then boi
  Tensor prompts(const std::vector<std::vector<int64_t>>& captions) const;  // int64 [B, P]
  Tensor rows(const Tensor& prompts, const Tensor& indices) const;          // [B, P], [B, h, w] or [B, h w] -> [B, P + h w]
  Tensor image_ids(const Tensor& indices) const;                            // codes -> ids, any shape
  Tensor codes(const Tensor& image_ids) const;                              // ids [B, h w] -> codes [B, h, w]
  // bool [V]: ids that may stand at an image position. Samplers mask the rest.
  Tensor image_id_mask() const;

  // "sequence_layout" of model_index.json.
  static SequenceLayout from_json(const Json& json, std::string_view where);
  Json to_json() const;
  void validate(std::string_view where) const;
  // ConfigError naming both values when the components do not belong together. -1: not known, not checked.
  void check(int64_t tokenizer_vocab, int64_t codebook_size, int64_t transformer_vocab, std::string_view where) const;
};

}  // namespace fewstep::models
