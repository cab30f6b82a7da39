// The metrics of a protocol: which network sees which form of the images, and what is computed of its features.
#pragma once
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "eval/compare.h"
#include "eval/metric.h"
#include "eval/protocols.h"

namespace fewstep::eval {

// One pass over the images: a network with a way to prepare them.
enum class EncoderView { inception, inception_spatial, inception_patch, clip, cmmd, dinov2, vgg };

inline constexpr int64_t kPatchSide = 299;  // what the InceptionV3 reads

struct ViewKind {
  EncoderView view;
  std::string_view encoder;  // key of `encoders:`
  bool text;                 // images against captions: the real images are not needed
  bool patch;                // central crops of the full-size images, nothing resized
};
std::span<const ViewKind> view_kinds();

// What the metrics of one view see.
struct ViewInputs {
  const Protocol& protocol;
  EncoderIdentity identity;
  const CompareSide* real = nullptr;  // null for text views
  const CompareSide* samples = nullptr;
  const CompareSide* baseline = nullptr;  // of `paired_with`: sample i has the same caption; null without one
  // Text views only.
  Tensor cosines = {}, baseline_cosines = {};  // float64 [N]; baseline undefined without one
  Tensor shuffled_cosines = {};                // float64 [N]: each image with the next one's caption
  double logit_scale = 0;
};

struct ProtocolMetric {
  std::string_view name;
  EncoderView view;
  bool only_moments;  // enough: mean and covariance of the real side (a statistics file)
  std::map<std::string, Value> (*compute)(const ViewInputs& inputs);
};
std::span<const ProtocolMetric> protocol_metrics();

}  // namespace fewstep::eval
