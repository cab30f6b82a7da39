// The one place that knows how a caption and an image become one row of ids:
//   ids [0, text_vocab)              the BPE tokenizer's, its <pad> among them
//   boi = text_vocab                 begin of image
//   text_vocab + 1 + k               image code k
//   text_vocab + 1 + codebook        end of a row of the grid, when `row_end` (as Lumina-mGPT and Emu3 have it)
//   row = caption, cut or padded with <pad> to caption_length | boi | grid_height rows of grid_width image ids in raster
//         order, each row closed by its row end when there is one
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
  bool row_end = false;

  int64_t boi() const { return text_vocab; }
  int64_t image_vocab() const { return codebook + (row_end ? 1 : 0); }  // what may stand at an image position
  int64_t vocab_size() const { return text_vocab + 1 + image_vocab(); }
  int64_t image_id(int64_t code) const { return text_vocab + 1 + code; }
  int64_t row_length() const { return grid_width + (row_end ? 1 : 0); }
  int64_t image_length() const { return grid_height * row_length(); }
  int64_t prompt_length() const { return caption_length + 1; }
  int64_t sequence_length() const { return prompt_length() + image_length(); }

  std::vector<int64_t> prompt(std::span<const int64_t> caption_ids) const;  // [P]
  std::vector<int64_t> unconditional_prompt() const;                        // all <pad>, then boi
  Tensor prompts(const std::vector<std::vector<int64_t>>& captions) const;  // int64 [B, P]
  Tensor tokens(const Tensor& indices) const;   // VQ indices [B, h, w] or [B, h w] -> image tokens [B, N], row ends put in
  Tensor indices(const Tensor& tokens) const;   // image tokens [B, N] -> VQ indices [B, h, w], row ends dropped
  Tensor rows(const Tensor& prompts, const Tensor& indices) const;          // [B, P], [B, h, w] or [B, h w] -> ids [B, P + N]
  Tensor forced_codes() const;                  // int64 [N]: the token of a structural position, -1 elsewhere

  // "sequence_layout" of model_index.json.
  static SequenceLayout from_json(const Json& json, std::string_view where);
  Json to_json() const;
  void validate(std::string_view where) const;
  // ConfigError naming both values when the components do not belong together. -1: not known, not checked.
  void check(int64_t tokenizer_vocab, int64_t codebook_size, int64_t transformer_vocab, std::string_view where) const;
};

}  // namespace fewstep::models
