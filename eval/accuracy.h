// Does the image show what its caption says? By a classifier, by measurement of the pixels, by a small CLIP.
#pragma once
#include <memory>

#include "eval/metrics.h"

namespace fewstep::eval {

// Share of images whose most likely class (judge's head) is the caption's.
std::unique_ptr<Metric> make_class_accuracy(const MetricContext& context);
// The same for each class apart: class_accuracy[judge@...,class=dress].
std::unique_ptr<Metric> make_accuracy_by_class(const MetricContext& context);
// Attributes named by the caption against those measured from the pixels: per attribute, and all together.
std::unique_ptr<Metric> make_attribute_accuracy(const MetricContext& context);
// Mean of max(100 cos(image, caption), 0). Floor: the same images with the captions shuffled.
std::unique_ptr<Metric> make_clip_score(const MetricContext& context);

// Share with the half width of its 95 % interval (Wilson 1927).
Value share(int64_t correct, int64_t n);
// Mean with 1.96 standard errors.
Value mean_with_interval(const std::vector<double>& values);
Value mean_with_interval(const Tensor& values);  // of all its elements

}  // namespace fewstep::eval
