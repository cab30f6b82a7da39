#include "eval/preprocessing.h"

#include <cmath>

#include "src/base/table.h"
#include "src/io/image.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::eval {
namespace {

constexpr std::array<double, 3> kImageNetMean = {0.485, 0.456, 0.406}, kImageNetStd = {0.229, 0.224, 0.225};
constexpr std::array<double, 3> kClipMean = {0.48145466, 0.4578275, 0.40821073},
                                kClipStd = {0.26862954, 0.26130258, 0.27577711};

void check_images(const Tensor& images) {
  if (images.scalar_type() != at::kByte)
    fail<DataError>("images for an encoder must be uint8 in [0, 255], got {}; convert floats of a known range first",
                    c10::toString(images.scalar_type()));
  expect_shape(images, {-1, 3, -1, -1}, "images for an encoder");
}

// (x - mean) / std by channel; `x` [..., 3, H, W] with values up to `white`.
Tensor normalise(const Tensor& x, const std::array<double, 3>& mean, const std::array<double, 3>& std, double white) {
  const auto column = [&](const std::array<double, 3>& v) {
    return (at::tensor({v[0], v[1], v[2]}, at::kDouble) * white).to(x.scalar_type()).view({3, 1, 1});
  };
  return (x - column(mean)) / column(std);
}

Tensor minus_128(const Tensor& x) { return (x - 128) / 128; }

Tensor clean(const Tensor& images, int64_t side) { return minus_128(resize_clean(images, side, side)); }

Tensor pytorch_fid(const Tensor& images, int64_t side) {
  check_images(images);
  const Tensor unit = images.to(at::kFloat) / 255;
  return 2 * at::upsample_bilinear2d(unit, {side, side}, /*align_corners=*/false) - 1;
}

Tensor tf_legacy(const Tensor& images, int64_t side) {
  check_images(images);
  return minus_128(resize_tensorflow1(images.to(at::kFloat), side, side));
}

Tensor torchmetrics(const Tensor& images, int64_t side) {
  check_images(images);
  return minus_128(at::_upsample_bilinear2d_aa(images.to(at::kFloat), {side, side}, /*align_corners=*/false));
}

constexpr InceptionPipeline kPipelines[] = {
    {"clean", "antialiased bicubic on floats, (x - 128) / 128: clean-fid, GigaGAN, DMD2", clean},
    {"pytorch-fid", "bilinear without antialias, 2 x - 1: pytorch-fid, MLPerf", pytorch_fid},
    {"tf-legacy", "TensorFlow 1's bilinear, (x - 128) / 128: torch-fidelity, TTUR", tf_legacy},
    {"torchmetrics", "antialiased bilinear, (x - 128) / 128: torchmetrics", torchmetrics},
};

// Two neighbours of every target row or column, and the weight of the second: in float32, as TensorFlow and its ports
// have it.
struct Neighbours {
  Tensor low, high, weight;
};
Neighbours neighbours(int64_t in, int64_t out) {
  const Tensor scale = at::scalar_tensor(static_cast<double>(in) / static_cast<double>(out), at::kFloat);
  const Tensor place = at::arange(out, at::kFloat) * scale;
  const Tensor low = place.to(at::kLong);
  return {low, (low + 1).clamp_max(in - 1), place - low.to(at::kFloat)};
}

// torchvision.transforms.functional.center_crop: int(round(margin / 2)) with Python's rounding of halves to even.
int64_t half_to_even(int64_t margin) { return static_cast<int64_t>(std::nearbyint(static_cast<double>(margin) / 2.0)); }

}  // namespace

std::span<const InceptionPipeline> inception_pipelines() { return kPipelines; }
const InceptionPipeline& find_inception_pipeline(std::string_view name) {
  return find_entry(inception_pipelines(), name, "image pipeline");
}

Tensor resize_tensorflow1(const Tensor& x, int64_t height, int64_t width) {
  const NoGrad no_grad;
  const auto [B, C, H, W] = dims<4>(x);
  const Neighbours rows = neighbours(H, height), columns = neighbours(W, width);
  const auto blend = [](const Tensor& a, const Tensor& b, const Tensor& w) { return a + (b - a) * w; };
  const Tensor top = x.index_select(2, rows.low), bottom = x.index_select(2, rows.high);
  const auto across = [&](const Tensor& y) {
    return blend(y.index_select(3, columns.low), y.index_select(3, columns.high), columns.weight);
  };
  return blend(across(top), across(bottom), rows.weight.view({height, 1}));
}

Tensor resize_clean(const Tensor& images, int64_t height, int64_t width) {
  const NoGrad no_grad;
  check_images(images);
  // Pillow computes in double: in float32 the operator's own rounding reaches 1e-3 of a grey level.
  return at::_upsample_bicubic2d_aa(images.to(at::kDouble), {height, width}, /*align_corners=*/false)
      .clamp(0, 255)
      .to(at::kFloat);
}

Tensor vgg_input(const Tensor& images, int64_t side) {
  check_images(images);
  return normalise(resize_tensorflow1(images.to(at::kFloat), side, side), kImageNetMean, kImageNetStd, 255);
}

Tensor dinov2_input(const Tensor& images, int64_t side) {
  return normalise(resize_clean(images, side, side) / 255, kImageNetMean, kImageNetStd, 1);
}

Tensor clip_input(const Tensor& image, int64_t side, ClipCrop crop) {
  const NoGrad no_grad;
  const auto [C, H, W] = dims<3>(image);
  if (C != 3 || image.scalar_type() != at::kByte)
    fail<DataError>("CLIP reads uint8 [3, H, W], got {} channels of {}", C, c10::toString(image.scalar_type()));
  Tensor x = image;
  if (crop == ClipCrop::square_first) {
    const int64_t s = std::min(H, W);
    x = x.narrow(1, (H - s) / 2, s).narrow(2, (W - s) / 2, s);
    x = io::resize(x.contiguous(), side, side, io::Resample::bicubic);
  } else {
    const int64_t shorter = std::min(H, W), longer = std::max(H, W) * side / shorter;
    x = io::resize(x, W <= H ? side : longer, W <= H ? longer : side, io::Resample::bicubic);
    const auto start = [&](int64_t margin) {
      return crop == ClipCrop::torchvision ? half_to_even(margin) : margin / 2;
    };
    x = x.narrow(1, start(x.size(1) - side), side).narrow(2, start(x.size(2) - side), side);
  }
  return normalise(x.to(at::kFloat) / 255, kClipMean, kClipStd, 1);
}

Tensor crop_centre(const Tensor& image, int64_t side) {
  const int64_t H = image.size(-2), W = image.size(-1);
  if (side < 1 || side > std::min(H, W)) fail<DataError>("crop of side {} from an image of {} x {}", side, W, H);
  return image.narrow(-2, half_to_even(H - side), side).narrow(-1, half_to_even(W - side), side);
}

Tensor crop_and_resize_lanczos(const Tensor& image, int64_t side) {
  const NoGrad no_grad;
  const auto [C, H, W] = dims<3>(image);
  const int64_t s = std::min(H, W);
  return io::resize(crop_centre(image, s).contiguous(), side, side, io::Resample::lanczos);
}

}  // namespace fewstep::eval
