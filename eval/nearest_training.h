// Are samples copies of training images? The share that lies closer to one than real, unseen images usually do.
#pragma once
#include <memory>

#include "eval/metrics.h"

namespace fewstep::eval {

// float32 [N]: distance of each image to the nearest of `training` in pixels (root mean square in grey levels). Images
// uint8 [N, C, H, W], in blocks: memory is block x M floats.
Tensor nearest_distances(const Tensor& images, const Tensor& training, int64_t block = 512);

// nearest_training: share of images nearer to a training image than the 5 % of real reference images that are nearest.
// Real images show 5 % by construction, copies 100 %. nearest_distance: the median, in grey levels.
std::unique_ptr<Metric> make_nearest_training(const MetricContext& context);

}  // namespace fewstep::eval
