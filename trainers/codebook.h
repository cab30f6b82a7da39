// The moving-average codebook of a VQ tokenizer (van den Oord et al. 2017, appendix A.1; Razavi et al. 2019, sec. 2.1), with
// revival of dead codes. Counts and sums are all-reduced: the codebook does not depend on the number of ranks.
#pragma once
#include <cstdint>

#include "src/config/visitor.h"
#include "src/dist/world.h"
#include "src/tensor/tensor.h"

namespace fewstep {

struct CodebookConfig {
  double decay = 0.98;             // gamma of the moving averages
  double dead_below = 0.03;        // a code is dead when its moving count falls below this share of the uniform one
  double revive_until = 0.7;       // share of the steps during which dead codes are revived
};
void describe(config::Visitor& v, CodebookConfig& c);

class MovingCodebook {
 public:
  // `codes` [K, D] is the model's codebook, written in place.
  MovingCodebook(Tensor codes, const CodebookConfig& config, dist::World& world);
  // latents [B, N, D] of this rank (N cells an image) and the code [B, N] each fell to. `seed` and `step` key the draws of
  // revived codes. Before the first update every code is dead: the first batch fills the book.
  void update(const Tensor& latents, const Tensor& indices, bool revive, uint64_t seed, int64_t step);
  bool empty() const;               // no batch seen yet
  int64_t revived() const { return revived_; }  // codes revived by the last update
  double perplexity() const;        // exp of the entropy of the moving counts, at most K
  TensorMap state() const;
  void load_state(const TensorMap& tensors);

 private:
  // For code k a random cell among all ranks' latents, the same on every rank and for any number of ranks.
  Tensor candidates(const Tensor& latents, uint64_t seed, int64_t step) const;  // [K, D]
  Tensor codes_, counts_, sums_;    // [K, D], [K], [K, D]
  CodebookConfig config_;
  dist::World& world_;
  int64_t revived_ = 0;
};

}  // namespace fewstep
