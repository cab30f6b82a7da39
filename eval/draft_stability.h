// Does a window settle? The share of drafts that a pass leaves as they were, by the age of the draft.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "eval/metric.h"
#include "src/tensor/tensor.h"

namespace fewstep::eval {

// Counts over images; what PassObserver of a decoder has seen of a batch goes in, image by image.
class DraftStability {
 public:
  // codes: after each pass, int64 [B, N], -1 where there is no draft yet. committed_at int64 [B, N]: the pass (0-based)
  // that decided a slot; what a slot does later does not count. `window`: slots the decoder starts with, drawn once in
  // the first pass.
  void add(const std::vector<Tensor>& codes, const Tensor& committed_at, int64_t window);
  // "draft_stability" over all ages, "draft_stability[age=a]" for a = 0, 1, 2, 4, ... as far as there are drafts. Age
  // 0: the random code a slot enters with. Interval: of a ratio over images (Cochran 1977, eq. 2.39).
  std::map<std::string, Value> result() const;

 private:
  static constexpr int64_t kAges = 64;
  struct Image {
    std::vector<int64_t> drafts, kept;  // [kAges]; the last one and older
  };
  std::vector<Image> images_;
};

}  // namespace fewstep::eval
