// SDXL's micro-conditioning (Podell et al. 2023, arXiv 2307.01952, section 2.2): the six integers a network is told
// about the framing of its image.
#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <string>

#include "src/tensor/tensor.h"

namespace fewstep {

// Of the image as the network sees it: where `flipped`, the image was mirrored first and the crop is counted in the
// mirrored one. Offsets are in pixels of the RESIZED image, sizes of the file after EXIF orientation.
struct MicroConditioning {
  int64_t original_height = 0, original_width = 0;
  int64_t crop_top = 0, crop_left = 0;
  int64_t target_height = 0, target_width = 0;
  bool flipped = false;  // no number tells the network; kept for checks and caches
  bool operator==(const MicroConditioning&) const = default;
};

inline constexpr int64_t kMicroNumbers = 6;
// [h_orig, w_orig, c_top, c_left, h_tgt, w_tgt]: the order of sgm and diffusers' time_ids.
std::array<int64_t, kMicroNumbers> micro_numbers(const MicroConditioning& micro);
MicroConditioning micro_of_numbers(const std::array<int64_t, kMicroNumbers>& numbers, bool flipped = false);
// An image that is neither resized nor cropped.
MicroConditioning whole_image(int64_t height, int64_t width);
Tensor micro_tensor(std::span<const MicroConditioning> rows);  // float32 [B, 6]; integers below 2^24 are exact
std::string micro_text(const MicroConditioning& micro);        // "original 768x1024 crop (0, 161) target 1024x1024"

}  // namespace fewstep
