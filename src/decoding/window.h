// The window of slots in front of every row: drafts, the laws they were drawn from, noise levels, noisy embeddings. Slot j of
// row b stands for image token start[b] + j.
#pragma once
#include <cstdint>

#include "src/decoding/decoders.h"
#include "src/decoding/randomness.h"

namespace fewstep::decoding {

class Window {
 public:
  Window(const ImageModel& model, const DecoderOptions& options, const models::EmbeddingNoise* noise,
         const std::vector<double>& times, const DecoderRandomness& randomness, int64_t batch);

  Tensor draft;   // int64 [B, W]
  Tensor law;     // [B, W, K]: what the draft was drawn from, given all slots to its left; undefined when nobody asks
  Tensor level;   // int64 [B, W]: 0 clean ... K pure noise
  Tensor age;     // int64 [B, W]: passes the slot has been in the window
  Tensor noisy;   // [B, W, d] in normalised space; undefined without levels

  Tensor inputs(int64_t width) const;   // [B, width, d]: clean embeddings, or denormalised noisy ones
  // After a pass with laws p [B, W', K] of the first W' slots and draws y [B, W'] from them: noisy slots take a DDIM step to
  // y's (or the expected) embedding and fall one level; drafts become y and their laws p (clean slots only when refining).
  void update(const Tensor& y, const Tensor& p);
  // Moves every row left by count [B], at most `most`, and fills up on the right. `start` [B]: slot 0's token afterwards.
  void shift(const Tensor& count, const Tensor& start, int64_t most);
  void keep(const Tensor& rows);        // int64 [B'] on the device

 private:
  void fill(const Tensor& count, const Tensor& start, int64_t most);
  Tensor first_law(const Tensor& x, const Tensor& is_forced) const;
  const ImageModel& model_;
  const DecoderOptions& options_;
  const models::EmbeddingNoise* noise_;
  Tensor decay_, gain_;                 // [K + 1, 1]: of the denoising step at a level
  Tensor even_;                         // [K]: the uniform law of free codes; undefined where new slots are one-hot
  Tensor forced_;                       // int64 [N]
  Tensor first_draft_;                  // float [B, N]
  Tensor first_noise_;                  // [B, N, d]
};

// Slots of rows [B, W] that stand count [B] further right, the last one for those behind the end: flat index int64 [B W].
Tensor behind(const Tensor& count, int64_t slots);
Tensor slots_of(const Tensor& x, const Tensor& flat);  // x [B, W, ...] there: [B, W, ...]

}  // namespace fewstep::decoding
