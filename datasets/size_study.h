// The kind `fashion_mnist_sizes`: size conditioning in miniature (SDXL, arXiv 2307.01952, section 2.2 and table 2).
// As on the web, most images are small: only `kept_share` of the training images, and none of some classes, are
// photographs of full size (`image_size` pixels); the others had `small_min` to `small_max` pixels and were scaled up.
// A small image is really sampled down (antialiased) and up again. micro.original says the size, as the paper's c_size.
// Arms: size-conditioned and unconditioned train on all images (the network takes the numbers or not), `discard_small`
// keeps those of full size only, `shuffle_sizes` is the control whose numbers say nothing about the image.
// The heldout and test splits hold all their images at full size: what is asked for when sampling with c_size = full.
#pragma once
#include <memory>
#include <string_view>
#include <vector>

#include "datasets/fashion_study.h"

namespace fewstep {

struct SizeStudyConfig : DatasetConfig {
  FashionStudyOptions study;
  double kept_share = 0.1;
  int64_t small_min = 8, small_max = 24;
  std::vector<int64_t> classes_without_large = {2, 7};  // pullover, sneaker
  bool discard_small = false, shuffle_sizes = false;
  std::string_view kind() const override { return "fashion_mnist_sizes"; }
  void describe(config::Visitor& v) override;
  std::unique_ptr<Dataset> build(Split split) const override;
};

// The law of the original size, by class c of C: P(full size) = m (1 + w r), m = kept_share C / (C - absent), where r
// runs evenly from -1 to 1 over the classes that have large images (so the mean over all classes is kept_share) and w =
// min(0.6, 0.9 (1 / m - 1)), so that every class has small images too; 0 for the absent classes. Otherwise the size is
// small_min + floor((small_max - small_min + 1) u^(0.5 + c / C)): those of some classes are smaller than others'.
double large_share(const SizeStudyConfig& config, int64_t label);
// `large`, `small`: uniform in [0, 1). -> pixels.
int64_t draw_original_size(const SizeStudyConfig& config, int64_t label, double large, double small);

}  // namespace fewstep
