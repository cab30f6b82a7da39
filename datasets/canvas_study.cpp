#include "datasets/canvas_study.h"

#include <algorithm>
#include <cmath>

#include "datasets/framing.h"
#include "src/base/error.h"
#include "src/base/hash.h"
#include "src/base/philox.h"
#include "src/io/image.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"

namespace fewstep {
namespace {

enum CanvasProperty : uint64_t { kIsWide = 16, kIsPortrait };
constexpr uint64_t kPlaceDraw = 0x63616e766173;  // a counter of its own beside those that framing draws with
constexpr uint8_t kGround = 32;                  // as measure_garment: below is ground

// The garment's bounding box, scaled (aspect kept) so that its longer side is `side` pixels. uint8 [1, h, w].
Tensor scaled_garment(const Tensor& image, int64_t side) {
  const int64_t height = image.size(1), width = image.size(2);
  const uint8_t* pixels = image.const_data_ptr<uint8_t>();
  int64_t top = height, bottom = -1, left = width, right = -1;
  for (int64_t y = 0; y < height; ++y)
    for (int64_t x = 0; x < width; ++x)
      if (pixels[y * width + x] >= kGround) {
        top = std::min(top, y), bottom = std::max(bottom, y);
        left = std::min(left, x), right = std::max(right, x);
      }
  if (bottom < 0) top = left = 0, bottom = height - 1, right = width - 1;  // an empty picture stays one
  const int64_t h = bottom - top + 1, w = right - left + 1, longer = std::max(h, w);
  const auto scaled = [&](int64_t n) { return std::max<int64_t>(1, (n * side + longer / 2) / longer); };
  const Tensor box = image.slice(1, top, bottom + 1).slice(2, left, right + 1).contiguous();
  return io::resize(box, scaled(w), scaled(h));
}

// `garment` centred on a black canvas [1, height, width] at the square of `side` whose corner is (top, left).
Tensor placed(const Tensor& garment, int64_t side, BucketSize canvas, int64_t top, int64_t left) {
  Tensor out = at::empty({1, canvas.height, canvas.width}, at::kByte);
  uint8_t* to = out.mutable_data_ptr<uint8_t>();
  std::fill_n(to, out.numel(), uint8_t{0});
  const Tensor in = garment.contiguous();
  const uint8_t* from = in.const_data_ptr<uint8_t>();
  const int64_t h = garment.size(1), w = garment.size(2);
  to += (top + (side - h) / 2) * canvas.width + left + (side - w) / 2;
  for (int64_t y = 0; y < h; ++y) std::copy_n(from + y * w, w, to + y * canvas.width);
  return out;
}

class CanvasStudy final : public FashionStudy {
 public:
  CanvasStudy(const CanvasStudyConfig& config, Split split) : FashionStudy(config.study, split), config_(config) {
    framing_.crop = CropKind::random;
    framing_.flip = 0;
    if (config.shuffle_crops) told_ = permutation();
    fingerprint_ =
        sha256_hex(fmt::format("fashion canvas 1 {} seed {} wide {} spread {} margin {} shuffle {} fixed {} {}",
                               base_->fingerprint(), config.study.split_seed, config.wide_share, config.spread,
                               config.margin, config.shuffle_crops, config.fixed_left, config.fixed_top));
  }

  Sample get(int64_t index, uint64_t seed, int64_t epoch) const override {
    Sample sample = base_->get(kept(index), seed, epoch);
    const int64_t side = config_.study.image_size;
    const BucketSize canvas = canvas_of(sample.id);
    const Frame frame = frame_of(sample.id, seed, epoch);
    const Tensor garment = scaled_garment(sample.image, side - 2 * config_.margin);
    const double u = philox_uniform(stream_key(seed, Stream::augment, epoch, sample.id), kPlaceDraw, 0);
    const int64_t top = place(frame.micro.crop_top, canvas.height - side, u),
                  left = place(frame.micro.crop_left, canvas.width - side, u);
    sample.image = apply_frame(placed(garment, side, canvas, top, left), frame).contiguous();
    sample.micro = told_.empty() ? frame.micro : frame_of(id(told_[static_cast<size_t>(index)]), seed, epoch).micro;
    return sample;
  }

  std::string description() const override {
    std::string text = fmt::format("Fashion-MNIST canvas {}: {} photographs, {} x {}", name_of(split_), size(),
                                   config_.study.image_size, config_.study.image_size);
    if (config_.fixed_left >= 0) return text + fmt::format(", all cropped at left {} of 2:1", config_.fixed_left);
    if (config_.fixed_top >= 0) return text + fmt::format(", all cropped at top {} of 1:2", config_.fixed_top);
    text += fmt::format(", {:.0f} % cropped from 2:1 or 1:2", 100 * config_.wide_share);
    return config_.shuffle_crops ? text + "; numbers are told of other images (control)" : text;
  }
  std::string fingerprint() const override { return fingerprint_; }

 private:
  BucketSize canvas_of(int64_t image_id) const {
    const int64_t side = config_.study.image_size;
    if (config_.fixed_left >= 0) return {side, 2 * side};
    if (config_.fixed_top >= 0) return {2 * side, side};
    if (property(image_id, kIsWide) >= config_.wide_share) return {side, side};
    return property(image_id, kIsPortrait) < 0.5 ? BucketSize{2 * side, side} : BucketSize{side, 2 * side};
  }

  Frame frame_of(int64_t image_id, uint64_t seed, int64_t epoch) const {
    const int64_t side = config_.study.image_size;
    const BucketSize canvas = canvas_of(image_id);
    Frame frame = choose_frame(canvas.height, canvas.width, {side, side}, framing_, {seed, epoch, image_id});
    if (config_.fixed_left >= 0) frame.micro.crop_left = config_.fixed_left;
    if (config_.fixed_top >= 0) frame.micro.crop_top = config_.fixed_top;
    return frame;
  }

  // Where the garment's square begins on an axis with `slack` pixels beside it, for a crop at `crop`: one of the whole
  // numbers within spread S of it, each as likely.
  int64_t place(int64_t crop, int64_t slack, double u) const {
    const auto reach = static_cast<int64_t>(std::floor(config_.spread * static_cast<double>(config_.study.image_size)));
    const int64_t first = std::max<int64_t>(0, crop - reach), last = std::min(slack, crop + reach);
    return first + static_cast<int64_t>(u * static_cast<double>(last - first + 1));
  }

  CanvasStudyConfig config_;
  FramingConfig framing_;
  std::vector<int64_t> told_;  // shuffle_crops: whose numbers are told
  std::string fingerprint_;
};

}  // namespace

void CanvasStudyConfig::describe(config::Visitor& v) {
  describe_fashion_study(v, study);
  v.field("wide_share", wide_share, "share of images that are crops of 2:1 or 1:2 canvases", config::kUnit);
  v.field("spread", spread, "how far the garment may lie from the crop, in image sizes", config::kUnit);
  v.field("margin", margin, "pixels of ground around a garment that is seen whole", config::Range{1, 12});
  v.field("shuffle_crops", shuffle_crops, "control: the six numbers are permuted among the images");
  v.field("fixed_left", fixed_left, "every image is the crop at this offset of a 2:1 canvas; -1: as drawn",
          config::Range{-1, 256});
  v.field("fixed_top", fixed_top, "every image is the crop at this offset of a 1:2 canvas; -1: as drawn",
          config::Range{-1, 256});
  v.check(fixed_left <= study.image_size, "fixed_left", "a crop cannot begin beyond image_size: the canvas ends");
  v.check(fixed_top <= study.image_size, "fixed_top", "a crop cannot begin beyond image_size: the canvas ends");
  v.check(fixed_left < 0 || fixed_top < 0, "fixed_top",
          "only one of fixed_left and fixed_top: a canvas has one long axis");
}

std::unique_ptr<Dataset> CanvasStudyConfig::build(Split split) const {
  return std::make_unique<CanvasStudy>(*this, split);
}

}  // namespace fewstep
