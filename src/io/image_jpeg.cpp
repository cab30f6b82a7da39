// JPEG by libjpeg-turbo's TurboJPEG interface.
#include <turbojpeg.h>

#include <memory>
#include <utility>

#include "src/base/error.h"
#include "src/io/pixels.h"

namespace fewstep::io {
namespace {

// A handle is about 100 KB of tables: one per thread and direction, not one per picture.
class Handle {
 public:
  explicit Handle(tjhandle handle) : handle_(handle) {
    if (handle_ == nullptr) fail("libturbojpeg cannot be initialised: {}", tjGetErrorStr2(nullptr));
  }
  ~Handle() { tjDestroy(handle_); }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  operator tjhandle() const { return handle_; }

 private:
  tjhandle handle_;
};
std::unique_ptr<Handle>& decompressor_slot() {
  thread_local std::unique_ptr<Handle> handle;
  return handle;
}
tjhandle decompressor() {
  auto& slot = decompressor_slot();
  if (!slot) slot = std::make_unique<Handle>(tjInitDecompress());
  return *slot;
}
// A handle that failed may be left in the middle of a header and would go on there with the next picture: drop it.
[[noreturn]] void fail_decoding(std::string_view name) {
  const std::string reason = tjGetErrorStr2(decompressor());
  decompressor_slot().reset();
  fail<DataError>("{}: corrupt JPEG: {}", name, reason);
}
tjhandle compressor() {
  thread_local Handle handle(tjInitCompress());
  return handle;
}

struct Header {
  int width = 0, height = 0, subsampling = 0, colour = 0;
};

Header read_header(std::string_view bytes, std::string_view name) {
  Header h;
  if (tjDecompressHeader3(decompressor(), data_of(bytes), bytes.size(), &h.width, &h.height, &h.subsampling,
                          &h.colour) != 0)
    fail_decoding(name);
  check_image_size(h.width, h.height, name);
  return h;
}

// Warnings (a premature end, bad codes) are errors: the library would go on with grey blocks.
// `fast`: chroma is repeated instead of interpolated; after reducing the picture hardly a difference.
Pixels decompress(std::string_view bytes, std::string_view name, const Header& h, tjscalingfactor scale, bool fast = false) {
  const bool cmyk = h.colour == TJCS_CMYK || h.colour == TJCS_YCCK, grey = h.colour == TJCS_GRAY;
  const TJPF format = cmyk ? TJPF_CMYK : grey ? TJPF_GRAY : TJPF_RGB;
  Pixels out(TJSCALED(h.width, scale), TJSCALED(h.height, scale), cmyk ? 4 : grey ? 1 : 3);
  const int flags = TJFLAG_ACCURATEDCT | TJFLAG_STOPONWARNING | TJFLAG_LIMITSCANS | (fast ? TJFLAG_FASTUPSAMPLE : 0);
  if (tjDecompress2(decompressor(), data_of(bytes), bytes.size(), out.data.get(), static_cast<int>(out.width), 0,
                    static_cast<int>(out.height), format, flags) != 0)
    fail_decoding(name);
  return out;
}

// Adobe's CMYK files hold inverted inks (255: none), and so do practically all: r = c k / 255.
Pixels cmyk_to_rgb(const Pixels& in) {
  Pixels out(in.width, in.height, 3);
  const uint8_t* from = in.data.get();
  uint8_t* to = out.data.get();
  for (int64_t i = 0; i < in.width * in.height; ++i, from += 4, to += 3)
    for (int c = 0; c < 3; ++c) to[c] = static_cast<uint8_t>((from[c] * from[3] + 127) / 255);
  return out;
}

Pixels finish(Pixels pixels, std::string_view bytes) {
  if (pixels.channels == 4) pixels = cmyk_to_rgb(pixels);
  return orient(std::move(pixels), exif_orientation(bytes));
}

// The TIFF structure inside an Exif segment: byte order, offset of the first directory, its entries of 12 bytes.
int tiff_orientation(std::string_view tiff) {
  const bool big = tiff.starts_with("MM");
  if (!big && !tiff.starts_with("II")) return 1;
  const auto number = [&](size_t at, size_t bytes) -> uint64_t {
    if (at + bytes > tiff.size()) return 0;
    uint64_t value = 0;
    for (size_t i = 0; i < bytes; ++i) value = value << 8 | static_cast<uint8_t>(tiff[at + (big ? i : bytes - 1 - i)]);
    return value;
  };
  const size_t directory = number(4, 4), entries = number(directory, 2);
  for (size_t i = 0; i < entries; ++i) {
    const size_t entry = directory + 2 + 12 * i;
    if (entry + 12 > tiff.size()) return 1;
    if (number(entry, 2) != 0x0112) continue;  // Orientation, type SHORT
    const uint64_t value = number(entry + 8, 2);
    return number(entry + 2, 2) == 3 && value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
  }
  return 1;
}

}  // namespace

int exif_orientation(std::string_view jpeg) {
  // Segments are ff <marker> <length, big-endian, counts itself>; image data begins with start of scan (da).
  for (size_t at = 2; at + 4 <= jpeg.size() && jpeg[at] == '\xff';) {
    const auto marker = static_cast<uint8_t>(jpeg[at + 1]);
    if (marker == 0xff) {  // fill byte
      ++at;
      continue;
    }
    const size_t length = static_cast<uint8_t>(jpeg[at + 2]) * 256u + static_cast<uint8_t>(jpeg[at + 3]);
    if (marker == 0xda || length < 2 || at + 2 + length > jpeg.size()) return 1;
    const std::string_view body = jpeg.substr(at + 4, length - 2);
    if (marker == 0xe1 && body.starts_with(std::string_view("Exif\0\0", 6))) return tiff_orientation(body.substr(6));
    at += 2 + length;
  }
  return 1;
}

PixelSize jpeg_size(std::string_view bytes, std::string_view name) {
  const Header h = read_header(bytes, name);
  if (exif_orientation(bytes) >= 5) return {h.height, h.width};
  return {h.width, h.height};
}

Pixels decode_jpeg(std::string_view bytes, std::string_view name) {
  return finish(decompress(bytes, name, read_header(bytes, name), {1, 1}), bytes);
}

Pixels decode_jpeg_at_least(std::string_view bytes, std::string_view name, int64_t width, int64_t height) {
  const Header h = read_header(bytes, name);
  if (exif_orientation(bytes) >= 5) std::swap(width, height);
  tjscalingfactor scale{1, 1};
  for (const int denominator : {2, 4, 8}) {
    const tjscalingfactor smaller{1, denominator};
    if (TJSCALED(h.width, smaller) >= width && TJSCALED(h.height, smaller) >= height) scale = smaller;
  }
  return finish(decompress(bytes, name, h, scale, true), bytes);
}

std::string encode_jpeg(const Pixels& pixels, int quality) {
  if (quality < 1 || quality > 100) fail("JPEG quality {} is not in 1...100", quality);
  uint8_t* out = nullptr;
  unsigned long bytes = 0;
  const bool grey = pixels.channels == 1;
  const int subsampling = grey ? TJSAMP_GRAY : quality >= 90 ? TJSAMP_444 : TJSAMP_420;
  const int result =
      tjCompress2(compressor(), pixels.data.get(), static_cast<int>(pixels.width), 0, static_cast<int>(pixels.height),
                  grey ? TJPF_GRAY : TJPF_RGB, &out, &bytes, subsampling, quality, TJFLAG_ACCURATEDCT);
  std::string text(reinterpret_cast<const char*>(out), result == 0 ? bytes : 0);
  tjFree(out);
  if (result != 0)
    fail("JPEG encoding of {} x {} pixels failed: {}", pixels.width, pixels.height, tjGetErrorStr2(compressor()));
  return text;
}

}  // namespace fewstep::io
