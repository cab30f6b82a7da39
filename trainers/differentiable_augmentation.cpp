#include "trainers/differentiable_augmentation.h"

#include "src/base/error.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "src/tensor/shape.h"

namespace fewstep {
namespace {

// A sample's row of uniforms: so many a branch. `augment` rows of other uses differ by their own keys.
enum DrawColumn : int64_t { kDrawBrightness, kDrawSaturation, kDrawContrast, kDrawShiftY, kDrawShiftX, kDrawCutY, kDrawCutX, kDrawColumns };

Tensor per_augmented_image(const Tensor& values, const Tensor& images) {
  return values.to(images.device(), images.scalar_type()).view({-1, 1, 1, 1});
}

int64_t share_of(double ratio, int64_t length) { return static_cast<int64_t>(static_cast<double>(length) * ratio + 0.5); }

// Moves along dim 2 or 3, zeros flow in: content at y goes to y + shift.
Tensor moved(const Tensor& images, const Tensor& shift, int64_t dim) {
  const int64_t length = images.size(dim);
  const Tensor source =
      at::arange(length, at::kLong).unsqueeze(0).to(images.device()) - shift.to(images.device()).unsqueeze(1);  // [B, length]
  std::vector<int64_t> shape(4, 1);
  shape[0] = images.size(0), shape[static_cast<size_t>(dim)] = length;
  const Tensor inside = source.ge(0).logical_and(source.lt(length)).to(images.scalar_type()).view(shape);
  return images.gather(dim, source.clamp(0, length - 1).view(shape).expand_as(images)) * inside;
}

Tensor in_range(const Tensor& first, int64_t count, int64_t length) {  // bool [B, length]
  const Tensor at_ = at::arange(length, at::kLong).unsqueeze(0), from = first.unsqueeze(1);
  return at_.ge(from).logical_and(at_.lt(from + count));
}

Tensor cut_out(const Tensor& images, const AugmentationDraws& d) {
  const Tensor rows = in_range(d.cut_y, d.cut_height, images.size(2)), columns = in_range(d.cut_x, d.cut_width, images.size(3));
  const Tensor cut = rows.unsqueeze(2).logical_and(columns.unsqueeze(1)).unsqueeze(1);  // [B, 1, H, W]
  return images * cut.logical_not().to(images.device(), images.scalar_type());
}

}  // namespace

void describe(config::Visitor& v, DifferentiableAugmentationConfig& c) {
  v.field("brightness", c.brightness, "width of the uniform law that is added (images in [-1, 1]); 0: off", config::kNonNegative);
  v.field("saturation", c.saturation, "saturation factor 1 +- this, for colour images; 0: off", config::kUnit);
  v.field("contrast", c.contrast, "contrast factor 1 +- this; 0: off", config::kUnit);
  v.field("translation", c.translation, "largest shift each way, of the side; 0: off", config::kUnit);
  v.field("cutout", c.cutout, "side of the square that is greyed out, of the image's side; 0: off", config::kUnit);
}

AugmentationDraws draw_augmentation(const DifferentiableAugmentationConfig& c, const Tensor& ids, int64_t height, int64_t width,
                                    const AugmentationKey& key) {
  FEW_CHECK(key.branch >= 0, "branch {} of an augmentation", key.branch);
  const Tensor rows = ids.to(at::kCPU, at::kLong);
  const Tensor first = at::full_like(rows, key.branch * kDrawColumns);
  const Tensor u = uniform_by_id(rows, first, kDrawColumns, key.seed, Stream::augment, key.step);  // [B, columns]
  const auto column = [&](DrawColumn i) { return u.select(1, i); };
  const auto whole = [&](DrawColumn i, int64_t count) {  // uniform on 0 ... count - 1
    return (column(i) * static_cast<double>(count)).floor().to(at::kLong).clamp_max(count - 1);
  };
  const auto shift = [&](DrawColumn i, int64_t length) {
    const int64_t most = share_of(c.translation, length);
    return whole(i, 2 * most + 1) - most;
  };
  const auto first_cut = [&](DrawColumn i, int64_t cut, int64_t length) { return whole(i, length + 1 - cut % 2) - cut / 2; };
  AugmentationDraws d;
  d.brightness = (column(kDrawBrightness) - 0.5) * c.brightness;
  d.saturation = 1 + (2 * column(kDrawSaturation) - 1) * c.saturation;
  d.contrast = 1 + (2 * column(kDrawContrast) - 1) * c.contrast;
  d.shift_y = shift(kDrawShiftY, height), d.shift_x = shift(kDrawShiftX, width);
  d.cut_height = share_of(c.cutout, height), d.cut_width = share_of(c.cutout, width);
  d.cut_y = first_cut(kDrawCutY, d.cut_height, height), d.cut_x = first_cut(kDrawCutX, d.cut_width, width);
  return d;
}

Tensor augment(const Tensor& images, const DifferentiableAugmentationConfig& c, const AugmentationDraws& d) {
  Tensor x = images;
  if (c.brightness > 0) x = x + per_augmented_image(d.brightness, x);
  if (c.saturation > 0 && x.size(1) > 1) {
    const Tensor grey = x.mean(1, true);
    x = (x - grey) * per_augmented_image(d.saturation, x) + grey;
  }
  if (c.contrast > 0) {
    const Tensor level = x.mean({1, 2, 3}, true);
    x = (x - level) * per_augmented_image(d.contrast, x) + level;
  }
  if (c.translation > 0) x = moved(moved(x, d.shift_y, 2), d.shift_x, 3);
  if (d.cut_height > 0 && d.cut_width > 0) x = cut_out(x, d);
  return x;
}

Tensor augment(const Tensor& images, const DifferentiableAugmentationConfig& c, const Tensor& ids, const AugmentationKey& key) {
  const auto [B, C, H, W] = dims<4>(images);
  FEW_CHECK(ids.size(0) == B, "{} ids for {} images", ids.size(0), B);
  return augment(images, c, draw_augmentation(c, ids, H, W, key));
}

}  // namespace fewstep
