#include "datasets/framing.h"

#include <algorithm>
#include <cmath>

#include "src/base/error.h"
#include "src/base/philox.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"

namespace fewstep {
namespace {

constexpr config::Choice kCropChoices[] = {{"center", 0}, {"random", 1}};
constexpr config::Choice kDecodeChoices[] = {{"exact", 0}, {"fast", 1}};

// Draws of one sample's framing beside choose_caption's, which is the key itself.
enum FrameDraw : uint64_t { kFlipDraw = 1, kTopDraw, kLeftDraw };

// Uniform on [0, slack], both ends in it.
int64_t draw_offset(uint64_t key, FrameDraw draw, int64_t slack) {
  const auto product = static_cast<unsigned __int128>(philox_u64(key, draw, 0)) * static_cast<uint64_t>(slack + 1);
  return static_cast<int64_t>(product >> 64);
}

// The image covers the target when scaled by max(h_t / h, w_t / w). Which of the two is larger is decided in integers,
// so that this side is the target's exactly; the other one is rounded to the nearest, never below the target's.
std::pair<int64_t, int64_t> cover_size(int64_t height, int64_t width, BucketSize target) {
  if (target.height * width >= target.width * height)
    return {target.height, std::max(target.width, (2 * width * target.height + height) / (2 * height))};
  return {std::max(target.height, (2 * height * target.width + width) / (2 * width)), target.width};
}

io::WindowOptions window_of_frame(const Frame& frame) {
  const MicroConditioning& m = frame.micro;
  return {.size = {frame.resized_width, frame.resized_height},
          .x = frame.stored_left(),
          .y = m.crop_top,
          .window = {m.target_width, m.target_height}};
}

// In place, row by row: loader threads use no operators.
Tensor mirrored(Tensor image) {
  uint8_t* row = image.mutable_data_ptr<uint8_t>();
  const int64_t width = image.size(2), rows = image.size(0) * image.size(1);
  for (int64_t y = 0; y < rows; ++y, row += width) std::reverse(row, row + width);
  return image;
}

}  // namespace

void describe_framing(config::Visitor& v, FramingConfig& c) {
  v.field("crop", c.crop, "where the target size is cut from an image that is longer on one side", kCropChoices);
  v.field("flip", c.flip, "chance that an image is mirrored, drawn anew every epoch", config::kUnit);
  v.field("decode", c.decode,
          "exact; fast: JPEGs are scaled by 1/2, 1/4 or 1/8 while decoding (pixels differ a little)", kDecodeChoices);
}

bool needs_upscaling(int64_t height, int64_t width, BucketSize target) {
  return height < target.height || width < target.width;
}

Frame choose_frame(int64_t height, int64_t width, BucketSize target, const FramingConfig& config, FrameKey key) {
  FEW_CHECK(height > 0 && width > 0 && target.height > 0 && target.width > 0, "an image of {} x {} for a target of {}", height,
            width, bucket_text(target));
  if (!config.upscale && needs_upscaling(height, width, target))
    fail<DataError>("sample {}: {} x {} (height x width) is smaller than its target {}: allow data.small_images upscale or drop",
                    key.id, height, width, bucket_text(target));
  Frame frame;
  std::tie(frame.resized_height, frame.resized_width) = cover_size(height, width, target);
  const int64_t slack_y = frame.resized_height - target.height, slack_x = frame.resized_width - target.width;
  const uint64_t draws = stream_key(key.seed, Stream::augment, key.epoch, key.id);
  MicroConditioning& m = frame.micro;
  m = {.original_height = height, .original_width = width, .crop_top = slack_y / 2, .crop_left = slack_x / 2,
       .target_height = target.height, .target_width = target.width};
  m.flipped = config.flip > 0 && philox_uniform(draws, kFlipDraw, 0) < config.flip;
  // The offset is drawn in the mirrored image, so it needs no mapping; stored_left() maps it back for the decoder.
  if (config.crop == CropKind::random) {
    m.crop_top = draw_offset(draws, kTopDraw, slack_y);
    m.crop_left = draw_offset(draws, kLeftDraw, slack_x);
  }
  return frame;
}

MicroConditioning framed_again(const MicroConditioning& stored, const Frame& frame) {
  const BucketSize target{stored.target_height, stored.target_width};
  const int64_t left = frame.micro.flipped
                           ? cover_size(stored.original_height, stored.original_width, target).second - target.width - stored.crop_left
                           : stored.crop_left;
  const auto scaled = [](int64_t offset, int64_t to, int64_t from) {
    return std::llround(static_cast<double>(offset) * static_cast<double>(to) / static_cast<double>(from));
  };
  MicroConditioning m = frame.micro;
  m.original_height = stored.original_height;
  m.original_width = stored.original_width;
  m.crop_top += scaled(stored.crop_top, frame.resized_height, target.height);
  m.crop_left += scaled(left, frame.resized_width, target.width);
  m.flipped = stored.flipped != frame.micro.flipped;
  return m;
}

Tensor apply_frame(const Tensor& image, const Frame& frame) {
  FEW_CHECK(image.size(1) == frame.micro.original_height && image.size(2) == frame.micro.original_width,
            "a frame for {} on an image of {} x {}", micro_text(frame.micro), image.size(1), image.size(2));
  const bool untouched = frame.resized_height == image.size(1) && frame.resized_width == image.size(2) &&
                         frame.micro.target_height == image.size(1) && frame.micro.target_width == image.size(2);
  const Tensor out = untouched ? image.clone() : io::resize_window(image, window_of_frame(frame));
  return frame.micro.flipped ? mirrored(out) : out;
}

Tensor decode_frame(std::string_view bytes, std::string_view name, io::Channels channels, const Frame& frame,
                    DecodeKind decode) {
  io::WindowOptions options = window_of_frame(frame);
  options.channels = channels;
  options.fast = decode == DecodeKind::fast;
  const Tensor out = io::decode_image_window(bytes, name, options);
  return frame.micro.flipped ? mirrored(out) : out;
}

}  // namespace fewstep
