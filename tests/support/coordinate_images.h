// Images whose pixels say where they are, and the way back: from what a network sees to the true size of the file, the
// crop and the flip, without asking the code that made it. Proof of micro-conditioning, cached or not.
#pragma once
#include <cstdint>
#include <string>

#include "datasets/micro_conditioning.h"
#include "src/tensor/tensor.h"

namespace fewstep::testing {

// uint8 [3, h, w]:
//   red    2 + 250 (x + 1/2) / w, green the same of y and h: ramps over the whole image, dithered along the other axis so
//          that means over it are exact to a few hundredths of a level. Slope: resized size; offset: crop; sign: flip.
//   blue   a wave of 32 ORIGINAL pixels along x and one along y. Its period in the resized image tells the scale, hence
//          with the resized size the original one.
// height, width >= 64: two periods.
Tensor coordinate_image(int64_t height, int64_t width);

// Along one axis, in pixels of the resized image.
struct RecoveredAxis {
  double resized = 0, offset = 0, original = 0;
  bool mirrored = false;
};
struct RecoveredFrame {
  RecoveredAxis y, x;
  double height = 0, width = 0;  // of what is seen
};

// `pixels`: [3, h, w], uint8 or float in [-1, 1], as a network sees them, or linearly pooled by `factor` (cached latents of
// a linear autoencoder).
RecoveredFrame recover_frame(const Tensor& pixels, double factor = 1);

// Crops to half a pixel of the resized image, sizes to half a pixel or 0.1 %, whichever is more.
inline constexpr double kCropTolerance = 0.5, kSizeTolerance = 0.5, kSizeShare = 0.001;

// What the six numbers (and `flipped`) say that the pixels do not; empty when they agree.
std::string micro_mistakes(const RecoveredFrame& frame, const MicroConditioning& m);
std::string micro_mistakes(const Tensor& pixels, const MicroConditioning& m, double factor = 1);

}  // namespace fewstep::testing
