// How an image fills its target size: resized to cover it, mirrored with a chance, cropped on the axis with slack
// (Algorithm 1 of SDXL, for any aspect), and the six numbers that say so.
#pragma once
#include <cstdint>
#include <string_view>

#include "datasets/buckets.h"
#include "datasets/micro_conditioning.h"
#include "src/config/visitor.h"
#include "src/io/image.h"
#include "src/tensor/tensor.h"

namespace fewstep {

enum class CropKind { center, random };
enum class DecodeKind { exact, fast };

struct FramingConfig {
  CropKind crop = CropKind::center;
  double flip = 0;      // chance of mirroring
  bool upscale = true;  // false: an image that would have to be enlarged is a DataError
  DecodeKind decode = DecodeKind::exact;  // fast: JPEGs are scaled by 1/2, 1/4, 1/8 while decoding; pixels differ a little
};
// `crop`, `flip`, `decode`; `upscale` is the data set's small_images.
void describe_framing(config::Visitor& v, FramingConfig& c);

// What the draws of one sample are keyed with.
struct FrameKey {
  uint64_t seed = 0;
  int64_t epoch = 0, id = 0;
};

struct Frame {
  MicroConditioning micro = {};
  int64_t resized_height = 0, resized_width = 0;
  // Left edge of the crop in the resized image that is NOT mirrored: what a decoder needs.
  int64_t stored_left() const {
    return micro.flipped ? resized_width - micro.target_width - micro.crop_left : micro.crop_left;
  }
};

// Resized to cover the target: scale = max(h_t / h, w_t / w), sides rounded, one of them equal to the target's. The
// crop offset is uniform on [0, slack] (both ends) or the middle (slack / 2, rounded down), in the resized, mirrored
// image. DataError (by id) when it would have to be enlarged and config.upscale is false.
Frame choose_frame(int64_t height, int64_t width, BucketSize target, const FramingConfig& config, FrameKey key);
bool needs_upscaling(int64_t height, int64_t width, BucketSize target);

// What the six numbers become when an image that was already framed (`stored`) is framed once more by `frame`: true
// original size, offsets added up in the final resized pixels (rounded), mirrored where `frame` mirrors.
MicroConditioning framed_again(const MicroConditioning& stored, const Frame& frame);

// uint8 [C, h, w] of the frame's original size -> uint8 [C, h_t, w_t], contiguous. Antialiased bicubic.
Tensor apply_frame(const Tensor& image, const Frame& frame);
// The same from a file's bytes, computing only what the crop keeps; equal bit for bit to apply_frame of the decoded
// image with DecodeKind::exact.
Tensor decode_frame(std::string_view bytes, std::string_view name, io::Channels channels, const Frame& frame,
                    DecodeKind decode);

}  // namespace fewstep
