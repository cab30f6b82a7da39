// What a decoder sees of an autoregressive image model. Families differ in where image codes live (one vocabulary with the
// text, or tables of their own) and in their structural tokens; one subclass a family.
#pragma once
#include <cstdint>

#include "src/models/kv_cache.h"
#include "src/models/llama.h"
#include "src/models/sequence_layout.h"
#include "src/tensor/tensor.h"

namespace fewstep::decoding {

class ImageModel {
 public:
  virtual ~ImageModel() = default;
  virtual int64_t codes() const = 0;                             // K: what a slot may hold, structural tokens included
  virtual int64_t free_codes() const = 0;                        // the first of them that only structural slots hold; K: none
  virtual int64_t length() const = 0;                            // N: slots of an image, in raster order
  virtual int64_t row_length() const = 0;                        // slots of a row of the grid
  virtual Tensor forced() const = 0;                             // int64 [N]: the code of a structural slot, -1: free
  virtual Tensor table() const = 0;                              // [K, d]: inputs of the codes
  virtual Tensor unconditional_prompt() const = 0;               // int64 [P]
  virtual Tensor embed_prompts(const Tensor& ids) const = 0;     // int64 [B, P] -> [B, P, d]
  virtual Tensor hidden(const Tensor& embeds, const models::ForwardOptions& options) const = 0;
  virtual Tensor code_logits(const Tensor& hidden) const = 0;    // [..., d] -> [..., K]
  virtual Tensor rotate(const Tensor& keys, const Tensor& positions) const = 0;  // [B, H, L, D] to positions [B, L]
  virtual models::KvCache make_cache(int64_t batch, int64_t capacity) const = 0;
};

// Codes are a range of the text model's vocabulary: our own models, Lumina-mGPT, Emu3.
class LlamaImageModel : public ImageModel {
 public:
  LlamaImageModel(const models::LlamaForCausalLM& model, const models::SequenceLayout& layout) : model_(model), layout_(layout) {}
  int64_t codes() const override { return layout_.image_vocab(); }
  int64_t free_codes() const override { return layout_.codebook; }
  int64_t length() const override { return layout_.image_length(); }
  int64_t row_length() const override { return layout_.row_length(); }
  Tensor forced() const override;
  Tensor table() const override;
  Tensor unconditional_prompt() const override;
  Tensor embed_prompts(const Tensor& ids) const override { return model_.embed(ids); }
  Tensor hidden(const Tensor& embeds, const models::ForwardOptions& options) const override { return model_.hidden(embeds, options); }
  Tensor code_logits(const Tensor& hidden) const override { return model_.logits(hidden, layout_.image_id(0), codes()); }
  Tensor rotate(const Tensor& keys, const Tensor& positions) const override { return model_.rotate(keys, positions); }
  models::KvCache make_cache(int64_t batch, int64_t capacity) const override { return model_.make_cache(batch, capacity); }

 private:
  const models::LlamaForCausalLM& model_;
  const models::SequenceLayout layout_;
};

}  // namespace fewstep::decoding
