// Metrics: streaming, float64, mergeable over ranks; and their honest names.
#pragma once
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/json.h"
#include "src/tensor/tensor.h"

namespace fewstep::eval {

struct Value {
  double value = 0;
  double ci95 = 0;  // half width; 0: not estimated
  int64_t n = 0;
  // What the number would be with nothing to show: real against real for distances, shuffled captions for CLIPScore.
  double floor = std::numeric_limits<double>::quiet_NaN();
  std::string note = {};  // "encoder not qualified", ...
};

// What every metric sees: images, what they were meant to show, and features computed once for all metrics.
struct EvalBatch {
  Tensor images;  // uint8 [B, C, H, W]
  std::vector<std::string> captions;
  Tensor labels;    // int64 [B], -1 unknown
  Tensor features;  // float [B, D] of the judge encoder; undefined when no metric needs it
  Tensor logits;    // float [B, K] of the judge's classes; undefined as above
  Tensor originals = {};  // uint8 as images: what each is a reconstruction of; undefined for other sets
};

class Metric {
 public:
  virtual ~Metric() = default;
  virtual void add(const EvalBatch& batch) = 0;
  virtual std::map<std::string, Value> result() const = 0;  // honest name -> value
};

}  // namespace fewstep::eval
