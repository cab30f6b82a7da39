// The numbers of a decoder's run: passes, step compression, acceptance, time.
#pragma once
#include <cstdint>
#include <vector>

#include "src/base/json.h"
#include "src/decoding/decoders.h"

namespace fewstep::decoding {

// Slots whose patch of the image is not background: some pixel differs by more than `tolerance` grey levels from the median of
// the image's border. images uint8 [B, C, H, W] -> bool [B, rows * columns].
Tensor foreground_slots(const Tensor& images, int64_t rows, int64_t columns, int64_t tolerance = 8);

class DecodingStatistics {
 public:
  // forced int64 [N]: structural slots (>= 0) are counted apart. foreground bool [B, N], optional.
  void add(const Decoded& decoded, const Tensor& forced, const Tensor& foreground = {});

  int64_t images() const { return images_; }
  double passes() const;                 // mean of an image
  // Step compression S, tokens a forward pass: the mean over images of tokens / passes (as the paper has it), and all tokens
  // over all passes. Structural tokens are counted in both.
  double compression() const;
  double compression_interval() const;   // half width of the 95 % interval of the mean of ratios
  double compression_of_means() const;
  double compression_without_structural() const;
  // A pass that commits m tokens costs each of them 1 / m: tokens of a subset over the passes they cost.
  double foreground_compression() const; // NaN without foreground masks
  double seconds_per_pass() const;
  double tokens_per_second() const;
  double overhead() const;               // share of the time outside the transformer
  struct EntropyBin {
    double low, high, compression;
    int64_t tokens;
  };
  std::vector<EntropyBin> by_entropy(int64_t bins = 6) const;  // equal shares of the free tokens
  std::vector<int64_t> accepted_lengths() const;               // [m]: passes that committed m tokens of an image
  std::vector<std::pair<int64_t, double>> acceptance_by_age() const;  // [age]: drafts looked at, share accepted
  Json to_json() const;

 private:
  int64_t images_ = 0;
  double tokens_ = 0, structural_ = 0, passes_ = 0, ratios_ = 0, ratios_squared_ = 0, ratios_free_ = 0;
  double foreground_tokens_ = 0, foreground_cost_ = 0;
  double seconds_ = 0, forward_seconds_ = 0, batch_passes_ = 0;
  std::vector<double> entropies_, costs_;  // of every free token
  std::vector<int64_t> lengths_, tried_, kept_;
};

}  // namespace fewstep::decoding
