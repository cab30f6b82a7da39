// Antialiased resampling of 8-bit pictures with Pillow's fixed-point arithmetic (ImagingResample). Horizontal pass
// first, as in every Pillow up to 12, hence bit-exact with those; Pillow 13 takes the vertical pass first where that is
// cheaper, which changes some values by one.
#pragma once
#include "src/io/image.h"
#include "src/io/pixels.h"

namespace fewstep::io {

struct Window {
  int64_t x = 0, y = 0, width = 0, height = 0;
};
// `in` resampled to `size`; only `window` of the result is computed and returned.
Pixels resize_pixels(const Pixels& in, PixelSize size, Resample filter, const Window& window);
// The size with the shorter side `short_side`, the longer one in proportion, rounded down.
PixelSize short_side_size(PixelSize size, int64_t short_side);

// For tests: false keeps to the portable code although the CPU has AVX2. Returns what was set before.
bool use_avx2(bool on);

}  // namespace fewstep::io
