#include "tests/trainers/diffusion_bench.h"

#include "src/tensor/ops.h"

namespace fewstep::testing {

Sample ScoredPictures::get(int64_t index, uint64_t, int64_t) const {
  Sample s;
  s.id = index, s.label = index % 3, s.caption = index % 2 ? "a red thing" : "a blue thing";
  s.image = (at::arange(256).view({1, 16, 16}) * (index % 3 + 1)).remainder(256).to(at::kByte);
  s.micro = {.original_height = 20 + index, .original_width = 30 + index, .crop_top = index % 5, .crop_left = index % 7,
             .target_height = 16, .target_width = 16};
  s.aesthetic = 4.0 + 0.1 * static_cast<double>(index % 20);
  return s;
}

}  // namespace fewstep::testing
