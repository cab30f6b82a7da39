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
ImageSize decode_image_size(std::string_view bytes, std::string_view name);  // as shown: after EXIF orientation
// Format by extension (.png, .jpg, .jpeg, .webp). image: uint8 [1|3, H, W]. Atomic.
void write_image(const std::filesystem::path& path, const Tensor& image, int quality = 95);
std::string encode_png(const Tensor& image);  // bytes, for reports and TensorBoard
std::string encode_image(const Tensor& image, std::string_view extension, int quality = 95);  // ".png", ".jpg", ".webp"

enum class Resample { bilinear, bicubic, lanczos };  // support 1, 2, 3; bicubic with a = -0.5
// Antialiased uint8 resize, two passes with Pillow's fixed-point arithmetic: bit-exact with PIL.Image.resize
// (horizontal pass first; see resize.h about Pillow 13).
Tensor resize(const Tensor& image, int64_t width, int64_t height, Resample filter = Resample::bicubic);
Tensor center_crop(const Tensor& image, int64_t width, int64_t height);  // [..., H, W]

// Decode, resize so that the shorter side is `short_side` (the other one rounded down, as torchvision does), centre
// crop. Equals the three single calls bit for bit, but computes only what the crop keeps.
struct ResizeOptions {
  int64_t short_side = 256;
  int64_t crop_width = 0, crop_height = 0;  // 0: no crop
  Resample filter = Resample::bicubic;
  Channels channels = Channels::rgb;
  bool fast = false;  // JPEG: let the decoder scale by 1/2, 1/4, 1/8 first (close to the exact result, not equal)
};
Tensor decode_image_resized(std::string_view bytes, std::string_view name, const ResizeOptions& options);

// Decode, resize to `size`, keep the window of it that begins at (x, y): only that is computed. Equal bit for bit to the
// three steps one after another unless `fast`.
struct WindowOptions {
  ImageSize size;           // of the whole resized image
  int64_t x = 0, y = 0;     // window: left, top
  ImageSize window;         // its sides
  Resample filter = Resample::bicubic;
  Channels channels = Channels::rgb;
  bool fast = false;  // JPEG: the decoder scales by 1/2, 1/4, 1/8 to the smallest size that is not below kFastMargin `size`
};
inline constexpr double kFastMargin = 1.0;
Tensor decode_image_window(std::string_view bytes, std::string_view name, const WindowOptions& options);
Tensor resize_window(const Tensor& image, const WindowOptions& options);  // of a decoded image, uint8 [C, H, W]

Tensor to_float(const Tensor& image);  // uint8 [0, 255] -> float32 [-1, 1]
Tensor to_bytes(const Tensor& image);  // float [-1, 1] -> uint8, rounded and clamped
// [N, C, H, W] uint8 -> [C, rows * (H + gap) + gap, ...] on a white ground.
Tensor make_grid(const Tensor& images, int64_t columns, int64_t gap = 2, int64_t scale = 1);

}  // namespace fewstep::io
