// A transformer small enough to enumerate: every image it can draw has a known probability.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "src/decoding/decoders.h"
#include "src/models/embedding_noise.h"
#include "src/models/llama.h"
#include "src/models/sequence_layout.h"

namespace fewstep::testing {

struct TinySetup {
  at::ScalarType dtype = at::kFloat;
  int64_t grid_height = 2, grid_width = 3, codebook = 4;
  bool row_end = false;
  models::EmbeddingNoiseConfig noise = {};
};

// Two layers of grouped attention; weights large enough that the law of a token hangs on all tokens before it.
class TinyModel {
 public:
  explicit TinyModel(const TinySetup& setup = {});
  const decoding::ImageModel& model() const { return *image_model_; }
  const models::EmbeddingNoise& noise() const { return *noise_; }
  models::SequenceLayout layout;
  models::LlamaForCausalLM network;

  int64_t length() const { return layout.image_length(); }
  Tensor prompts(int64_t rows) const;  // int64 [rows, P]: kPrompts different ones in turn
  static constexpr int64_t kPrompts = 2;
  // Probability of every image given each prompt, float64 [kPrompts, cells]; made once per `sampling`.
  const Tensor& joint_law(const decoding::SamplingOptions& sampling) const;

 private:
  std::unique_ptr<decoding::LlamaImageModel> image_model_;
  std::unique_ptr<models::EmbeddingNoise> noise_;
  mutable std::map<std::tuple<double, double, int64_t, double>, Tensor> laws_;
};

// Guided logits [S, N, K] of all slots of given images [S, N]: one plain pass of the network a branch, without cache or mask.
Tensor plain_logits(const TinyModel& tiny, const Tensor& prompts, const Tensor& codes, double guidance);

// What a row has seen so far: image tokens as the cache holds them, and those of its window.
struct Seen {
  std::vector<Tensor> embeds;   // [d] each
  std::vector<int64_t> levels;  // 0: clean; else of `times`
};
// Guided logits [count, K] of slots first ... first + count - 1 of one row: one plain pass a branch without cache, with the
// timestep tokens as tokens of the sequence (TimestepTokens: shared_suffix at position 0, per_slot at the slot's).
Tensor plain_logits(const TinyModel& tiny, const Tensor& prompt, const Seen& seen, const std::vector<double>& times, int64_t first,
                    int64_t count, double guidance);

// Every image there is: tokens int64 [cells, N]; cell = the free codes as digits.
Tensor all_images(const models::SequenceLayout& layout);
Tensor cell_of(const models::SequenceLayout& layout, const Tensor& codes);  // int64 [B, N] -> [B]

// Pearson's chi-square of counts int64 [rows, cells] against laws [rows, cells], summed over rows; cells of which fewer than
// five are expected count as one.
struct Fit {
  double chi2 = 0, p = 0, tv = 0;  // tv: mean total variation of the rows, sampling noise included
  int64_t df = 0, impossible = 0;  // draws of probability zero
};
Fit fit(const Tensor& counts, const Tensor& laws);

double max_difference(const Tensor& a, const Tensor& b);
double rms(const Tensor& t);
Tensor some_ids(int64_t rows, int64_t first = 0);  // int64 [rows]
std::string label(const decoding::DecoderOptions& o);

}  // namespace fewstep::testing
