// The table of metrics: `metrics: [fd, prdc, ...]` in an eval config. Adding one: a function and a line in metrics.cpp.
#pragma once
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "datasets/fashion_attributes.h"
#include "eval/encoder.h"
#include "eval/frechet.h"
#include "eval/metric.h"

namespace fewstep::eval {

// What metrics compare with. Pointers are null when the config gives nothing of the kind; factories say what is
// missing.
struct MetricContext {
  const ImageEncoder* judge = nullptr;
  const TextImageEncoder* clip = nullptr;
  const FrechetReference* reference = nullptr;      // of the real reference images' features
  Tensor reference_features = {};                   // float [R, D]
  const AttributeThresholds* thresholds = nullptr;  // of data sets with measured captions
  Tensor reference_images = {};                     // uint8 [R, C, H, W]
  std::function<Tensor()> training_images = {};     // uint8 [M, C, H, W], loaded at the first call
  std::vector<std::string> class_names = {};        // of the data set, by label
  std::string perceptual = {}, perceptual_name = {};  // folder of the network of perceptual distances; "": none
  at::Device device = at::kCPU;                     // where it runs
  const ImageEncoder* patch = nullptr;              // a PatchEncoder: [B, P, D]
  const FrechetReference* patch_reference = nullptr;    // of the real reference images' patches
  int64_t patch_side = 0;                               // pixels
  const FrechetReference* teacher_reference = nullptr;  // of the teacher's samples, in the judge's features
  const ImageEncoder* in_loop = nullptr;            // what a discriminator read; see in_loop.h
  const FrechetReference* in_loop_reference = nullptr;
};

struct MetricKind {
  std::string_view name;
  std::string_view meaning;
  bool distribution;  // compares a whole set with real images: meaningless for a set of special prompts
  std::unique_ptr<Metric> (*make)(const MetricContext& context);  // ConfigError naming the missing key
};
std::span<const MetricKind> metric_kinds();

}  // namespace fewstep::eval
