#include "src/io/pixels.h"

#include <algorithm>
#include <cstring>

#include "src/base/error.h"

namespace fewstep::io {

ImageFormat image_format(std::string_view bytes) {
  if (bytes.starts_with("\x89PNG\r\n\x1a\n")) return ImageFormat::png;
  if (bytes.starts_with("\xff\xd8\xff")) return ImageFormat::jpeg;
  if (bytes.starts_with("RIFF") && bytes.size() >= 12 && bytes.substr(8, 4) == "WEBP") return ImageFormat::webp;
  return ImageFormat::unknown;
}

void check_image_size(int64_t width, int64_t height, std::string_view name) {
  if (width <= 0 || height <= 0) fail<DataError>("{}: a picture of {} x {} pixels", name, width, height);
  if (width > kMaxPixels / height) fail<DataError>("{}: {} x {} pixels, the limit is 2^28 in all", name, width, height);
}

Pixels compose_on_white(Pixels in) {
  const int64_t colours = in.channels - 1, n = in.width * in.height;
  Pixels out(in.width, in.height, colours);
  const uint8_t* from = in.data.get();
  uint8_t* to = out.data.get();
  for (int64_t i = 0; i < n; ++i, from += colours + 1, to += colours) {
    const int alpha = from[colours];
    for (int64_t c = 0; c < colours; ++c)
      to[c] = static_cast<uint8_t>((from[c] * alpha + 255 * (255 - alpha) + 127) / 255);
  }
  return out;
}

Pixels orient(Pixels in, int orientation) {
  if (orientation <= 1 || orientation > 8) return in;
  // Orientations 5-8 transpose; then the source is mirrored along x and/or y.
  const bool transpose = orientation >= 5;
  const bool flip_x = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const bool flip_y = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  Pixels out(transpose ? in.height : in.width, transpose ? in.width : in.height, in.channels);
  for (int64_t y = 0; y < out.height; ++y) {
    for (int64_t x = 0; x < out.width; ++x) {
      int64_t sx = transpose ? y : x, sy = transpose ? x : y;
      if (flip_x) sx = in.width - 1 - sx;
      if (flip_y) sy = in.height - 1 - sy;
      std::memcpy(out.row(y) + x * out.channels, in.row(sy) + sx * in.channels, static_cast<size_t>(in.channels));
    }
  }
  return out;
}

Pixels grey_to_rgb(const Pixels& grey) {
  Pixels out(grey.width, grey.height, 3);
  uint8_t* to = out.data.get();
  for (int64_t i = 0; i < grey.bytes(); ++i, to += 3) std::fill_n(to, 3, grey.data[static_cast<size_t>(i)]);
  return out;
}

Pixels rgb_to_grey(const Pixels& rgb) {
  Pixels out(rgb.width, rgb.height, 1);
  const uint8_t* from = rgb.data.get();
  for (int64_t i = 0; i < out.bytes(); ++i, from += 3)
    out.data[static_cast<size_t>(i)] =
        static_cast<uint8_t>((from[0] * 19595 + from[1] * 38470 + from[2] * 7471 + 0x8000) >> 16);
  return out;
}

}  // namespace fewstep::io
