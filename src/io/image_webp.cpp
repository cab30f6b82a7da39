// WebP by libwebp (still pictures).
#include <webp/decode.h>
#include <webp/encode.h>

#include "src/base/error.h"
#include "src/io/pixels.h"

namespace fewstep::io {
namespace {

const char* reason(VP8StatusCode code) {
  switch (code) {
    case VP8_STATUS_OUT_OF_MEMORY:
      return "out of memory";
    case VP8_STATUS_BITSTREAM_ERROR:
      return "bad bit stream";
    case VP8_STATUS_UNSUPPORTED_FEATURE:
      return "a feature libwebp does not know";
    case VP8_STATUS_NOT_ENOUGH_DATA:
    case VP8_STATUS_SUSPENDED:
      return "truncated";
    default:
      return "cannot be decoded";
  }
}

WebPBitstreamFeatures features_of(std::string_view bytes, std::string_view name) {
  WebPBitstreamFeatures features;
  const VP8StatusCode code = WebPGetFeatures(data_of(bytes), bytes.size(), &features);
  if (code != VP8_STATUS_OK) fail<DataError>("{}: corrupt WebP: {}", name, reason(code));
  if (features.has_animation) fail<DataError>("{}: an animated WebP; only still pictures are read", name);
  return features;
}

}  // namespace

PixelSize webp_size(std::string_view bytes, std::string_view name) {
  const WebPBitstreamFeatures features = features_of(bytes, name);
  return {features.width, features.height};
}

Pixels decode_webp(std::string_view bytes, std::string_view name) {
  WebPDecoderConfig config;
  if (!WebPInitDecoderConfig(&config)) fail("{}: libwebp's version differs from its headers'", name);
  config.input = features_of(bytes, name);
  check_image_size(config.input.width, config.input.height, name);
  Pixels pixels(config.input.width, config.input.height, config.input.has_alpha ? 4 : 3);
  config.output.colorspace = config.input.has_alpha ? MODE_RGBA : MODE_RGB;
  config.output.is_external_memory = 1;
  config.output.u.RGBA = {pixels.data.get(), static_cast<int>(pixels.row_bytes()), static_cast<size_t>(pixels.bytes())};
  const VP8StatusCode code = WebPDecode(data_of(bytes), bytes.size(), &config);
  WebPFreeDecBuffer(&config.output);
  if (code != VP8_STATUS_OK) fail<DataError>("{}: corrupt WebP: {}", name, reason(code));
  return pixels.channels == 4 ? compose_on_white(std::move(pixels)) : std::move(pixels);
}

std::string encode_webp(const Pixels& in, int quality) {
  if (in.channels == 1) return encode_webp(grey_to_rgb(in), quality);
  uint8_t* out = nullptr;
  const int w = static_cast<int>(in.width), h = static_cast<int>(in.height), stride = static_cast<int>(in.row_bytes());
  const size_t bytes = quality >= 100 ? WebPEncodeLosslessRGB(in.data.get(), w, h, stride, &out)
                                      : WebPEncodeRGB(in.data.get(), w, h, stride, static_cast<float>(quality), &out);
  if (bytes == 0) fail("WebP encoding of {} x {} pixels failed (the format's limit is 16383 a side)", w, h);
  std::string text(reinterpret_cast<const char*>(out), bytes);
  WebPFree(out);
  return text;
}

}  // namespace fewstep::io
