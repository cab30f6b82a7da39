// Decoded pictures before they become tensors: interleaved bytes, codecs and resampling. No tensor library.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace fewstep::io {

constexpr int64_t kMaxPixels = int64_t{1} << 28;

// [height, width, channels] uint8, rows without padding. channels: 1 grey, 3 RGB; 2 and 4 (with alpha) inside codecs.
struct Pixels {
  Pixels() = default;
  Pixels(int64_t w, int64_t h, int64_t c)  // not initialised; width, height >= 1
      : width(w),
        height(h),
        channels(c),
        data(std::make_unique_for_overwrite<uint8_t[]>(static_cast<size_t>(w * h * c))) {}
  int64_t row_bytes() const { return width * channels; }
  int64_t bytes() const { return row_bytes() * height; }
  uint8_t* row(int64_t y) { return data.get() + y * row_bytes(); }
  const uint8_t* row(int64_t y) const { return data.get() + y * row_bytes(); }

  int64_t width = 0, height = 0, channels = 0;
  std::unique_ptr<uint8_t[]> data;
};

inline const uint8_t* data_of(std::string_view bytes) { return reinterpret_cast<const uint8_t*>(bytes.data()); }

enum class ImageFormat { unknown, png, jpeg, webp };
ImageFormat image_format(std::string_view bytes);  // by content

// Throws the DataError that every codec uses for pictures over kMaxPixels or without pixels.
void check_image_size(int64_t width, int64_t height, std::string_view name);

// Grey or RGB; alpha composed on white, orientation applied. DataError "<name>: <reason>".
Pixels decode_png(std::string_view bytes, std::string_view name);
Pixels decode_jpeg(std::string_view bytes, std::string_view name);
Pixels decode_webp(std::string_view bytes, std::string_view name);
struct PixelSize {
  int64_t width = 0, height = 0;
};
PixelSize png_size(std::string_view bytes, std::string_view name);
PixelSize jpeg_size(std::string_view bytes, std::string_view name);  // as shown: after EXIF orientation
PixelSize webp_size(std::string_view bytes, std::string_view name);
std::string encode_png(const Pixels& pixels);
std::string encode_jpeg(const Pixels& pixels, int quality);
std::string encode_webp(const Pixels& pixels, int quality);  // 100: lossless

// DCT-domain scaling (decoder at 1/2, 1/4 or 1/8) to the smallest size with both sides >= the wanted ones; not exact.
Pixels decode_jpeg_at_least(std::string_view bytes, std::string_view name, int64_t width, int64_t height);
// 1 (upright) ... 8; 1 when there is no valid EXIF orientation.
int exif_orientation(std::string_view jpeg);

Pixels compose_on_white(Pixels with_alpha);     // 2 -> 1 or 4 -> 3 channels
Pixels orient(Pixels pixels, int orientation);  // EXIF 1...8 -> upright
Pixels grey_to_rgb(const Pixels& grey);
Pixels rgb_to_grey(const Pixels& rgb);  // ITU-R 601 in Pillow's fixed point

}  // namespace fewstep::io
