// A batch of images while they are being decoded: the static KV cache, each row's own lengths, guidance pairs, and one
// forward pass over committed tokens that are not cached yet and the window of slots behind them.
//
// Cache of a row:  | timestep tokens | prompt P | image tokens 0 ... N-1, and room for a window |
// A pass of row b feeds positions cached[b] ... committed[b] + W - 1: keys written behind `cached` by an earlier pass (rejected
// drafts, noisy slots) are overwritten in place, so nothing is ever moved or cut.
#pragma once
#include <cstdint>
#include <vector>

#include "src/decoding/image_model.h"
#include "src/models/embedding_noise.h"

namespace fewstep::decoding {

struct SessionOptions {
  double guidance = 1.0;
  int64_t window = 0;         // most slots a pass looks at beyond the next one
  int64_t most_pending = 1;   // committed tokens that may wait for the cache at once, beside forced ones
  const models::EmbeddingNoise* noise = nullptr;  // with `times`: slots may be noisy
  std::vector<double> times = {};                 // t_0 = 0, t_1 ... t_K
};

class DecodingSession {
 public:
  // prompts int64 [B, P] on the model's device.
  DecodingSession(const ImageModel& model, const Tensor& prompts, const SessionOptions& options);

  int64_t batch() const { return static_cast<int64_t>(committed_.size()); }
  // Slots that the rows still open can use, at most options.window.
  int64_t window() const;
  bool finished() const;
  // int64 [B] on the device: committed image tokens = position of slot 0.
  const Tensor& start() const { return start_; }

  // Guided code logits [B, W + 1, K] of slots 0 ... W, given what stands at slots 0 ... W - 1: inputs [B, W, d], noise levels
  // int64 [B, W] (0: clean; undefined: all clean). Rows with fewer slots left have undefined values at the end.
  Tensor pass(const Tensor& inputs, const Tensor& levels);
  // Row b commits codes[b, :count[b]]; the keys of its first valid[b] slots stay. codes [B, S], count and valid [B], int64.
  // The one place where the host waits for the device. Returns the largest count.
  int64_t commit(const Tensor& codes, const Tensor& count, const Tensor& valid);
  // Rows 0 ... B - 1 become what `rows` [B'] were: drops finished ones. Their codes are given out here: [B, N].
  void keep(const std::vector<int64_t>& rows);
  Tensor codes() const { return codes_.narrow(1, 0, model_.length()); }  // [B, N]; committed ones are meaningful
  const std::vector<int64_t>& committed() const { return committed_; }
  double forward_seconds() const { return forward_seconds_; }            // inside pass(), all passes

 private:
  struct Feed;
  Feed plan(int64_t window) const;
  Tensor inputs_of(const Feed& f, const Tensor& inputs) const;  // [B', L, d]
  Tensor predicting(const Feed& f, const Tensor& hidden) const;
  Tensor mask_of(const Feed& f, const Tensor& levels) const;    // [B' or 1, 1, L, keys]
  void remember_timestep_tokens();
  void place_timestep_tokens(const Feed& f, const Tensor& levels);
  Tensor pairs(const Tensor& t) const;  // [B, ...] -> [2B, ...]: conditional, unconditional, conditional, ...
  Tensor on_device(const std::vector<int64_t>& values) const;

  const ImageModel& model_;
  const SessionOptions options_;
  const int64_t prompt_length_;
  int64_t timestep_places_ = 0;
  Tensor prompt_embeds_;            // [2B, P, d], until the first pass
  models::KvCache cache_, timestep_bank_;
  std::vector<int64_t> committed_;  // image tokens
  std::vector<int64_t> cached_;     // image tokens whose keys are valid; -P before the first pass
  Tensor start_, codes_;            // codes [B, N + 1]: the last column takes what is not committed
  Tensor seen_, unseen_;            // scalars of the mask: 0, -inf
  double forward_seconds_ = 0;
};

}  // namespace fewstep::decoding
