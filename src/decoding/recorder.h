// What a run of a decoder leaves for its report: when each slot was committed, under which entropy, how old its draft was.
#pragma once
#include <chrono>
#include <cstdint>
#include <vector>

#include "src/decoding/decoders.h"
#include "src/decoding/rules.h"

namespace fewstep::decoding {

class Recorder {
 public:
  Recorder(int64_t batch, int64_t slots, const at::TensorOptions& options);
  // One pass: p [B, W + 1, K], age int64 [B, W] before the pass, start int64 [B] before the commit; most slots a row committed.
  void add(int64_t pass, const Verdict& verdict, const Tensor& p, const Commit& commit, const Tensor& start, const Tensor& age,
           int64_t most);
  // Slots [B, S] with laws p [B, S, K]: all committed.
  void add(int64_t pass, const Tensor& slot, const Tensor& code, const Tensor& p);
  void show(const PassObserver& observe, int64_t pass, const Window& window, const Tensor& start);
  void keep(const Tensor& rows);
  Decoded finish(double forward_seconds);

 private:
  void flush();
  Tensor flat(const Tensor& place) const;     // of slots [B, S], S = slots for nowhere: into buffers, [B S]
  static constexpr int64_t kAges = 64;
  int64_t slots_;
  Tensor rows_;                               // int64 [B]: number in the batch the run began with
  Tensor codes_, committed_at_, entropy_;     // [B, N + 1]: the last column takes what is not committed
  Tensor tried_, kept_;                       // int64 [kAges]
  // What add() was given since the last flush(), flat: small writes after every pass would cost as much as the rules. Not kept
  // for long: small tensors that stay between the large ones of every pass would cut the heap to pieces.
  static constexpr size_t kFlush = 16;
  struct Waiting {
    std::vector<Tensor> places, codes, entropies, ages, tried, kept;
    std::vector<int64_t> passes;              // of each place
  } waiting_;
  int64_t passes_ = 0;
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

}  // namespace fewstep::decoding
