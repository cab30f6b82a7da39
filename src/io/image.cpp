#include "src/io/image.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/text.h"
#include "src/io/pixels.h"
#include "src/io/resize.h"
#include "src/tensor/ops.h"

namespace fewstep::io {
namespace fs = std::filesystem;

namespace {

[[noreturn]] void unknown_format(std::string_view bytes, std::string_view name) {
  if (bytes.empty()) fail<DataError>("{}: the file is empty", name);
  if (bytes.starts_with("version https://git-lfs"))
    fail<DataError>("{}: a Git LFS pointer, not a picture (run: git lfs pull)", name);
  fail<DataError>("{}: not a PNG, JPEG or WebP picture", name);
}

Pixels decode(std::string_view bytes, std::string_view name) {
  switch (image_format(bytes)) {
    case ImageFormat::png:
      return decode_png(bytes, name);
    case ImageFormat::jpeg:
      return decode_jpeg(bytes, name);
    case ImageFormat::webp:
      return decode_webp(bytes, name);
    case ImageFormat::unknown:
      break;
  }
  unknown_format(bytes, name);
}

Pixels with_channels(Pixels pixels, Channels channels) {
  if (channels == Channels::rgb && pixels.channels == 1) return grey_to_rgb(pixels);
  if (channels == Channels::grey && pixels.channels == 3) return rgb_to_grey(pixels);
  return pixels;
}

// [H, W, C] bytes -> contiguous [C, H, W]
Tensor to_tensor(const Pixels& pixels) {
  const int64_t n = pixels.width * pixels.height, channels = pixels.channels;
  Tensor out = at::empty({channels, pixels.height, pixels.width}, at::kByte);
  uint8_t* to = out.mutable_data_ptr<uint8_t>();
  const uint8_t* from = pixels.data.get();
  if (channels == 1) {
    std::memcpy(to, from, static_cast<size_t>(n));
  } else {
    FEW_CHECK(channels == 3, "a picture with {} channels", channels);
    uint8_t *r = to, *g = to + n, *b = to + 2 * n;
    for (int64_t i = 0; i < n; ++i) {
      r[i] = from[3 * i];
      g[i] = from[3 * i + 1];
      b[i] = from[3 * i + 2];
    }
  }
  return out;
}

Pixels to_pixels(const Tensor& image) {
  FEW_CHECK(image.dim() == 3 && image.scalar_type() == at::kByte && (image.size(0) == 1 || image.size(0) == 3),
            "an image is uint8 [1|3, H, W], got {} [{}]", c10::toString(image.scalar_type()), c10::str(image.sizes()));
  FEW_CHECK(image.size(1) > 0 && image.size(2) > 0, "an image of {} x {} pixels", image.size(2), image.size(1));
  const Tensor hwc = image.cpu().permute({1, 2, 0}).contiguous();
  Pixels out(image.size(2), image.size(1), image.size(0));
  std::memcpy(out.data.get(), hwc.const_data_ptr(), static_cast<size_t>(out.bytes()));
  return out;
}

}  // namespace

Tensor decode_image(std::string_view bytes, std::string_view name, Channels channels) {
  return to_tensor(with_channels(decode(bytes, name), channels));
}

Tensor read_image(const fs::path& path, Channels channels) {
  return decode_image(read_text(path), path.string(), channels);
}

ImageSize decode_image_size(std::string_view bytes, std::string_view name) {
  PixelSize size;
  switch (image_format(bytes)) {
    case ImageFormat::png:
      size = png_size(bytes, name);
      break;
    case ImageFormat::jpeg:
      size = jpeg_size(bytes, name);
      break;
    case ImageFormat::webp:
      size = webp_size(bytes, name);
      break;
    case ImageFormat::unknown:
      unknown_format(bytes, name);
  }
  check_image_size(size.width, size.height, name);
  return {size.width, size.height};
}

ImageSize read_image_size(const fs::path& path) {
  const MappedFile file(path);
  return decode_image_size({reinterpret_cast<const char*>(file.data()), file.size()}, path.string());
}

Tensor decode_image_resized(std::string_view bytes, std::string_view name, const ResizeOptions& o) {
  FEW_CHECK(o.short_side > 0 && o.crop_width >= 0 && o.crop_height >= 0, "resize to short side {}, crop {} x {}",
            o.short_side, o.crop_width, o.crop_height);
  const bool jpeg = image_format(bytes) == ImageFormat::jpeg;
  Pixels pixels;
  PixelSize full;
  if (o.fast && jpeg) {
    // Decoded a little larger than wanted (at least twice), the antialiasing filter still has something to do.
    full = jpeg_size(bytes, name);
    const PixelSize want = short_side_size(full, o.short_side);
    pixels = decode_jpeg_at_least(bytes, name, 2 * want.width, 2 * want.height);
  } else {
    pixels = decode(bytes, name);
    full = {pixels.width, pixels.height};
  }
  pixels = with_channels(std::move(pixels), o.channels);
  const PixelSize size = short_side_size(full, o.short_side);
  const int64_t width = o.crop_width > 0 ? o.crop_width : size.width,
                height = o.crop_height > 0 ? o.crop_height : size.height;
  if (width > size.width || height > size.height)
    fail<DataError>("{}: crop of {} x {} from {} x {} (resized to short side {})", name, width, height, size.width,
                    size.height, o.short_side);
  const Window window{(size.width - width) / 2, (size.height - height) / 2, width, height};
  return to_tensor(resize_pixels(pixels, size, o.filter, window));
}

namespace {

Tensor window_of(const Pixels& pixels, const WindowOptions& o) {
  return to_tensor(resize_pixels(pixels, {o.size.width, o.size.height}, o.filter, {o.x, o.y, o.window.width, o.window.height}));
}

}  // namespace

Tensor decode_image_window(std::string_view bytes, std::string_view name, const WindowOptions& o) {
  const auto wanted = [](int64_t side) { return static_cast<int64_t>(std::ceil(kFastMargin * static_cast<double>(side))); };
  const bool scaled = o.fast && image_format(bytes) == ImageFormat::jpeg;
  Pixels pixels = scaled ? decode_jpeg_at_least(bytes, name, wanted(o.size.width), wanted(o.size.height)) : decode(bytes, name);
  return window_of(with_channels(std::move(pixels), o.channels), o);
}

Tensor resize_window(const Tensor& image, const WindowOptions& o) { return window_of(to_pixels(image), o); }

void write_image(const fs::path& path, const Tensor& image, int quality) {
  const std::string extension = to_lower(path.extension().string());
  if (extension != ".png" && extension != ".jpg" && extension != ".jpeg" && extension != ".webp")
    fail<DataError>("{}: unknown picture format '{}' (known: .png, .jpg, .jpeg, .webp)", path.string(), extension);
  write_text_atomic(path, encode_image(image, extension, quality));
}

std::string encode_png(const Tensor& image) { return encode_png(to_pixels(image)); }

std::string encode_image(const Tensor& image, std::string_view extension, int quality) {
  const Pixels pixels = to_pixels(image);
  if (extension == ".png") return encode_png(pixels);
  if (extension == ".jpg" || extension == ".jpeg") return encode_jpeg(pixels, quality);
  if (extension == ".webp") return encode_webp(pixels, quality);
  fail("encode_image: unknown format '{}' (known: .png, .jpg, .webp)", extension);
}

Tensor resize(const Tensor& image, int64_t width, int64_t height, Resample filter) {
  FEW_CHECK(width > 0 && height > 0, "resize to {} x {}", width, height);
  return to_tensor(resize_pixels(to_pixels(image), {width, height}, filter, {0, 0, width, height}));
}

Tensor center_crop(const Tensor& image, int64_t width, int64_t height) {
  const int64_t h = image.size(-2), w = image.size(-1);
  FEW_CHECK(width > 0 && height > 0 && width <= w && height <= h, "crop of {} x {} from {} x {}", width, height, w, h);
  return image.slice(-2, (h - height) / 2, (h - height) / 2 + height)
      .slice(-1, (w - width) / 2, (w - width) / 2 + width)
      .contiguous();
}

Tensor to_float(const Tensor& image) { return image.to(at::kFloat).div_(127.5).sub_(1.0); }

Tensor to_bytes(const Tensor& image) {
  const Tensor scaled = image.detach().to(at::kFloat).add(1.0).mul_(127.5);
  if (scaled.isnan().any().item<bool>()) fail<NumericError>("a picture holds NaN");
  return scaled.round_().clamp_(0, 255).to(at::kByte);
}

Tensor make_grid(const Tensor& images, int64_t columns, int64_t gap, int64_t scale) {
  FEW_CHECK(images.dim() == 4 && images.scalar_type() == at::kByte && images.size(0) > 0,
            "make_grid: uint8 [N > 0, C, H, W], got {} [{}]", c10::toString(images.scalar_type()),
            c10::str(images.sizes()));
  FEW_CHECK(columns > 0 && gap >= 0 && scale > 0, "make_grid: columns {}, gap {}, scale {}", columns, gap, scale);
  const int64_t n = images.size(0), across = std::min(columns, n), rows = (n + across - 1) / across;
  const Tensor large = images.cpu().repeat_interleave(scale, 2).repeat_interleave(scale, 3);
  const int64_t h = large.size(2), w = large.size(3);
  Tensor out = at::full({images.size(1), rows * (h + gap) + gap, across * (w + gap) + gap}, 255, at::kByte);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t y = gap + i / across * (h + gap), x = gap + i % across * (w + gap);
    out.slice(1, y, y + h).slice(2, x, x + w).copy_(large[i]);
  }
  return out;
}

}  // namespace fewstep::io
