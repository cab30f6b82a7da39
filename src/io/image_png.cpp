// PNG by libpng. Its errors leave by longjmp, so nothing with a destructor is born between setjmp and the last call.
#include <png.h>

#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <vector>

#include "src/base/error.h"
#include "src/io/pixels.h"

namespace fewstep::io {
namespace {

struct PngState {
  std::string_view input;
  std::string* output = nullptr;
  char reason[160] = {};
};

[[noreturn]] void on_error(png_structp png, png_const_charp message) {
  auto* state = static_cast<PngState*>(png_get_error_ptr(png));
  std::snprintf(state->reason, sizeof state->reason, "%s", message);
  png_longjmp(png, 1);
}
void on_warning(png_structp, png_const_charp) {}  // colour profiles and the like: the pixels are fine

void on_read(png_structp png, png_bytep to, size_t bytes) {
  auto* state = static_cast<PngState*>(png_get_io_ptr(png));
  if (bytes > state->input.size()) png_error(png, "truncated");
  std::memcpy(to, state->input.data(), bytes);
  state->input.remove_prefix(bytes);
}
void on_write(png_structp png, png_bytep from, size_t bytes) {
  static_cast<PngState*>(png_get_io_ptr(png))->output->append(reinterpret_cast<const char*>(from), bytes);
}

// Owns the read structs, so that every way out frees them.
struct Reader {
  Reader(std::string_view bytes, std::string_view file) : name(file) {
    state.input = bytes;
    png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &state, on_error, on_warning);
    if (png != nullptr) info = png_create_info_struct(png);
    if (info == nullptr) fail("{}: libpng cannot be initialised", name);
    png_set_read_fn(png, &state, on_read);
  }
  ~Reader() { png_destroy_read_struct(&png, &info, nullptr); }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;
  [[noreturn]] void raise() const { fail<DataError>("{}: corrupt PNG: {}", name, state.reason); }

  PngState state;
  std::string_view name;
  png_structp png = nullptr;
  png_infop info = nullptr;
};

void read_header(Reader& r) {
  if (setjmp(png_jmpbuf(r.png))) r.raise();
  png_set_user_limits(r.png, 0x7fffffff, 0x7fffffff);  // our own limit is on the product
  png_read_info(r.png, r.info);
}

// Everything becomes 8-bit grey or RGB with or without alpha. Returns the channels.
int64_t set_transforms(Reader& r) {
  if (setjmp(png_jmpbuf(r.png))) r.raise();
  png_set_expand(r.png);    // palette -> RGB, 1/2/4 bits -> 8, tRNS -> alpha
  png_set_scale_16(r.png);  // rounded, not cut off
  png_set_interlace_handling(r.png);
  png_read_update_info(r.png, r.info);
  return png_get_channels(r.png, r.info);
}

void read_rows(Reader& r, png_bytepp rows) {
  if (setjmp(png_jmpbuf(r.png))) r.raise();
  png_read_image(r.png, rows);
  png_read_end(r.png, nullptr);
}

void write_rows(png_structp png, png_infop info, const Pixels& pixels, png_bytepp rows) {
  png_set_IHDR(png, info, static_cast<png_uint_32>(pixels.width), static_cast<png_uint_32>(pixels.height), 8,
               pixels.channels == 1 ? PNG_COLOR_TYPE_GRAY : PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
               PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  png_write_info(png, info);
  png_write_image(png, rows);
  png_write_end(png, nullptr);
}

}  // namespace

PixelSize png_size(std::string_view bytes, std::string_view name) {
  Reader r(bytes, name);
  read_header(r);
  return {png_get_image_width(r.png, r.info), png_get_image_height(r.png, r.info)};
}

Pixels decode_png(std::string_view bytes, std::string_view name) {
  Reader r(bytes, name);
  read_header(r);
  const int64_t width = png_get_image_width(r.png, r.info), height = png_get_image_height(r.png, r.info);
  check_image_size(width, height, name);
  const int64_t channels = set_transforms(r);
  Pixels pixels(width, height, channels);
  FEW_CHECK(static_cast<int64_t>(png_get_rowbytes(r.png, r.info)) == pixels.row_bytes(), "{}: PNG rows of {} bytes",
            name, png_get_rowbytes(r.png, r.info));
  std::vector<png_bytep> rows(static_cast<size_t>(height));
  for (int64_t y = 0; y < height; ++y) rows[static_cast<size_t>(y)] = pixels.row(y);
  read_rows(r, rows.data());
  return channels % 2 == 0 ? compose_on_white(std::move(pixels)) : std::move(pixels);
}

std::string encode_png(const Pixels& pixels) {
  std::string out;
  std::vector<png_bytep> rows(static_cast<size_t>(pixels.height));
  for (int64_t y = 0; y < pixels.height; ++y) rows[static_cast<size_t>(y)] = const_cast<png_bytep>(pixels.row(y));
  PngState state;
  state.output = &out;
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, &state, on_error, on_warning);
  png_infop info = png != nullptr ? png_create_info_struct(png) : nullptr;
  if (info == nullptr) fail("libpng cannot be initialised");
  if (setjmp(png_jmpbuf(png))) {
    png_destroy_write_struct(&png, &info);
    fail("PNG encoding: {}", state.reason);
  }
  png_set_write_fn(png, &state, on_write, nullptr);
  write_rows(png, info, pixels, rows.data());
  png_destroy_write_struct(&png, &info);
  return out;
}

}  // namespace fewstep::io
