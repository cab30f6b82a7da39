// DiffAugment (Zhao et al. 2020, arXiv 2006.10738): augmentations of what a discriminator sees, real and generated alike, that
// gradients pass through. Parameters are keyed by (seed, step, sample id, branch): the real and the fake side draw from the
// same laws independently, and a resumed run draws the same again.
#pragma once
#include <cstdint>

#include "src/config/visitor.h"
#include "src/tensor/tensor.h"

namespace fewstep {

// 0 switches an operation off. Applied in this order to images in [-1, 1]; what moves in or is cut out is 0 (grey).
struct DifferentiableAugmentationConfig {
  double brightness = 1.0;    // adds U(-1/2, 1/2) times this
  double saturation = 1.0;    // distance to the mean over channels times 1 + U(-1, 1) this; not for one channel
  double contrast = 0.5;      // distance to the image's mean times 1 + U(-1, 1) this
  double translation = 0.125; // of the side, up to this far each way, in whole pixels
  double cutout = 0.5;        // of the side: the square set to 0, centred anywhere
};
void describe(config::Visitor& v, DifferentiableAugmentationConfig& c);

struct AugmentationKey {
  uint64_t seed = 0;
  int64_t step = 0;
  int64_t branch = 0;  // 0 real, 1 fake, 2 teacher ...: independent parameters
};

// One row a sample; what the closed form of every operation needs.
struct AugmentationDraws {
  Tensor brightness, saturation, contrast;  // float [B]: addend, factor, factor
  Tensor shift_y, shift_x;                  // int64 [B]: pixels that the content moves down and right
  Tensor cut_y, cut_x;                      // int64 [B]: first row and column of the cut square (may lie outside)
  int64_t cut_height = 0, cut_width = 0;
};
// ids: int64 [B]. CPU tensors.
AugmentationDraws draw_augmentation(const DifferentiableAugmentationConfig& c, const Tensor& ids, int64_t height, int64_t width,
                                    const AugmentationKey& key);
// images: float [B, C, H, W] -> the same shape; differentiable in images (twice, too).
Tensor augment(const Tensor& images, const DifferentiableAugmentationConfig& c, const AugmentationDraws& draws);
Tensor augment(const Tensor& images, const DifferentiableAugmentationConfig& c, const Tensor& ids, const AugmentationKey& key);

}  // namespace fewstep
