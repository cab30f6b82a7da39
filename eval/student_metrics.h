// What few-step students are asked beside distance to real images: texture in patches, distance to the teacher, variety within a
// prompt.
#pragma once
#include <memory>

#include "eval/metrics.h"

namespace fewstep::eval {

// patch_FD[patch@1a2b3c4d,grid=16]: all patches that fit, side by side, in the features of an encoder trained on such crops.
std::unique_ptr<Metric> make_patch_fd(const MetricContext& context);
// FD_teacher[judge@1a2b3c4d]: to the teacher's samples of the same captions and other noise.
std::unique_ptr<Metric> make_teacher_fd(const MetricContext& context);
// diversity[judge@1a2b3c4d]: over captions that occur at least twice in the set, the mean of 1 - cosine over pairs of their images.
// Real images have one too. Nothing where every caption is another.
std::unique_ptr<Metric> make_diversity(const MetricContext& context);

}  // namespace fewstep::eval
