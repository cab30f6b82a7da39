// The InceptionV3 of FID (Szegedy et al. 2015, arXiv 1512.00567, as TensorFlow shipped it on 2015-12-05): names and
// numbers of pytorch-fid's state dict (566 entries). Against torchvision's InceptionV3: average pooling leaves the
// padding out of its counts, the last block pools by maximum, and there are 1,008 classes.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <string_view>

#include "src/base/json.h"
#include "src/nn/layers.h"

namespace fewstep::models {

struct FidInceptionConfig {
  int64_t channel_divisor = 1;  // slim networks for tests: every width divided, the classes too
  int64_t num_classes = 1008;
  double bn_eps = 1e-3;

  static FidInceptionConfig from_json(const Json& json, std::string_view where);
  Json to_json() const;
};

enum class InceptionDepth { pool1, pool2, mixed6e, pool3 };
struct InceptionTaps {  // undefined beyond the depth asked for
  Tensor pool1;         // [B, 64, 73, 73]
  Tensor pool2;         // [B, 192, 35, 35]
  Tensor mixed6e;       // [B, 768, 17, 17]
  Tensor pool3;         // [B, 2048]
};

class FidInception : public nn::Module {
 public:
  explicit FidInception(const FidInceptionConfig& config);
  ~FidInception() override;
  const FidInceptionConfig& config() const { return config_; }
  static constexpr int64_t kSide = 299;

  // x: float [B, 3, 299, 299], already mapped by an image pipeline to about [-1, 1].
  InceptionTaps operator()(const Tensor& x, InceptionDepth depth = InceptionDepth::pool3) const;
  // Of the inception score: without the bias of fc, as every implementation has it. pool3 [B, 2048] -> [B, 1008]
  Tensor unbiased_logits(const Tensor& pool3) const;
  // Folds batch norm into the convolutions, channels last: 1.5 times as fast on a CPU. Weights must not change
  // afterwards.
  void prepare_inference();
  int64_t width(InceptionDepth depth) const;

 private:
  struct Network;
  FidInceptionConfig config_;
  std::unique_ptr<Network> net_;
  nn::Linear fc_;
};

// Files without batch norm's counters of batches get zeros.
TensorMap adopt_fid_inception(TensorMap tensors);

}  // namespace fewstep::models
