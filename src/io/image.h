// Images on disk <-> uint8 tensors [C, H, W] (RGB, or 1 channel when asked for).
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "src/tensor/tensor.h"

namespace fewstep::io {

struct ImageSize {
  int64_t width = 0, height = 0;
};
enum class Channels { as_is, grey, rgb };

// PNG, JPEG, WebP by content. DataError names path and reason (truncated, corrupt, unknown format, over 2^28 pixels).
// 16-bit is rounded to 8, alpha is composed on white, palettes expanded, EXIF orientation applied, CMYK converted.
Tensor read_image(const std::filesystem::path& path, Channels channels = Channels::rgb);
Tensor decode_image(std::string_view bytes, std::string_view name, Channels channels = Channels::rgb);
ImageSize read_image_size(const std::filesystem::path& path);  // header only
// Format by extension (.png, .jpg, .jpeg, .webp). image: uint8 [1|3, H, W]. Atomic.
void write_image(const std::filesystem::path& path, const Tensor& image, int quality = 95);
std::string encode_png(const Tensor& image);  // bytes, for reports and TensorBoard

enum class Resample { bilinear, bicubic, lanczos };
// Antialiased uint8 resize, two passes with Pillow's fixed-point arithmetic: bit-exact with PIL.Image.resize.
Tensor resize(const Tensor& image, int64_t width, int64_t height, Resample filter = Resample::bicubic);
Tensor center_crop(const Tensor& image, int64_t width, int64_t height);

Tensor to_float(const Tensor& image);  // uint8 [0, 255] -> float32 [-1, 1]
Tensor to_bytes(const Tensor& image);  // float [-1, 1] -> uint8, rounded and clamped
// [N, C, H, W] uint8 -> [C, rows * (H + gap) + gap, ...] on a white ground.
Tensor make_grid(const Tensor& images, int64_t columns, int64_t gap = 2, int64_t scale = 1);

}  // namespace fewstep::io
