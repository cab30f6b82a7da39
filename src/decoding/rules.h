// The rules by which a pass judges the drafts of the window, and what it then commits.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "src/decoding/window.h"

namespace fewstep::decoding {

// Draws y [B, W + 1] ~ p, one a slot, the last for the slot behind the window; and which of the drafts stand [B, W].
struct Verdict {
  Tensor y, kept;
};
struct Commit {
  Tensor count;  // int64 [B]: slots that are decided now
  Tensor valid;  // int64 [B]: of those, the leading ones whose keys may stay in the cache
  Tensor stop;   // int64 [B]: drafts in front of it were accepted; it was looked at
};

struct RelaxedAcceptance;

class Rule {
 public:
  // `randomness` is kept, and drops finished rows together with the rule.
  Rule(const ImageModel& model, const DecoderOptions& options, const DecoderRandomness& randomness);
  ~Rule();
  // Laws [B, W + 1, K] of the slots at `position` int64 [B, W + 1]. Structural slots have one code, other slots never have it.
  Tensor laws(const Tensor& logits, const Tensor& position) const;
  // accept, again [B, W + 1]: uniforms of acceptance and of drawing.
  Verdict judge(const Window& window, const Tensor& p, const Tensor& accept, const Tensor& again) const;
  Commit commit(const Window& window, const Verdict& verdict, const Tensor& start, const Tensor& position) const;
  // After a commit of count [B] slots, at most `most` a row: `start` are the slots the rows stand at now. Randomness that is
  // fixed for every slot moves with the window.
  void shift(const Tensor& count, const std::vector<int64_t>& start, int64_t most);
  void keep(const Tensor& rows);

 private:
  Verdict speculate(const Window& window, const Tensor& p, const Tensor& accept, const Tensor& again) const;
  Tensor passes_on(const Window& window, const Tensor& kept) const;

  const DecoderOptions options_;
  const Tensor forced_;       // int64 [N]
  const int64_t structural_;  // codes that only structural slots hold
  const DecoderRandomness& randomness_;
  Tensor gumbel_;             // e^g [B, W + 1, K] of the window and the slot behind it
  std::unique_ptr<RelaxedAcceptance> relaxed_;
};

// Number of leading ones of each row, bool [B, W] -> int64 [B].
Tensor leading(const Tensor& flags);

}  // namespace fewstep::decoding
