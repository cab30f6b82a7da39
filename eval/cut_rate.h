// Cut-off objects: the share of images whose foreground reaches the border (the fault that crop conditioning repairs,
// Podell et al. 2023, section 2.2).
#pragma once
#include <memory>

#include "eval/metrics.h"

namespace fewstep::eval {

// uint8 [B, C, H, W] -> bool [B, 4]: does a pixel of the outermost left column, right column, top row, bottom row lie
// above `threshold` grey levels? The background is black.
Tensor border_foreground(const Tensor& images, int64_t threshold = 64);

// cut_rate: any side; cut_rate[left], [right], [top], [bottom].
std::unique_ptr<Metric> make_cut_rate(const MetricContext& context);

}  // namespace fewstep::eval
