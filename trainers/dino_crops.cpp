#include "trainers/dino_crops.h"

#include <cmath>

#include "src/base/error.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep {
namespace {

// Columns of a view's draws. Append only: they are part of every result.
enum ViewDraw : int64_t { kViewArea, kViewAspect, kViewLeft, kViewTop, kViewFlip, kViewJitter, kViewBrightness, kViewContrast, kViewBlur, kViewSigma, kViewDraws = 12 };

struct ViewRecipe {
  int64_t side;
  double min_area, max_area, blur;
};

Tensor view_factor(const Tensor& x) { return x.view({-1, 1, 1, 1}); }

// u: [B, kViewDraws] of this view.
Tensor make_view(const Tensor& images, const Tensor& u, const ViewRecipe& recipe, const DinoCropConfig& c) {
  const auto at_column = [&](ViewDraw draw) { return u.select(1, draw); };
  const Tensor boxes = crop_boxes(u.narrow(1, kViewArea, 4), images.size(2), images.size(3), recipe.min_area, recipe.max_area);
  const Tensor crop = resize_boxes(images, boxes, at_column(kViewFlip).lt(c.flip), recipe.side);
  const Tensor on = at_column(kViewJitter).lt(c.jitter);
  const auto factor = [&](ViewDraw draw, double range) { return at::where(on, 1.0 + range * (2.0 * at_column(draw) - 1.0), 1.0); };
  const Tensor sigma = at::where(at_column(kViewBlur).lt(recipe.blur), 0.1 + (c.max_sigma - 0.1) * at_column(kViewSigma), 0.0);
  return blur_images(jitter_images(crop, factor(kViewBrightness, c.brightness), factor(kViewContrast, c.contrast)), sigma);
}

}  // namespace

void describe(config::Visitor& v, DinoCropConfig& c) {
  v.field("locals", c.locals, "local crops an image, beside the two global ones", {0, 16});
  v.field("global_size", c.global_size, "side of a global crop in pixels, a multiple of the patch; 0: the images' own", config::kNonNegative);
  v.field("local_size", c.local_size, "side of a local crop in pixels, a multiple of the patch", config::kAtLeastOne);
  v.field("global_min_area", c.global_min_area, "smallest share of the image a global crop shows", {0.01, 1});
  v.field("global_max_area", c.global_max_area, "largest", {0.01, 1});
  v.field("local_min_area", c.local_min_area, "smallest share of the image a local crop shows", {0.01, 1});
  v.field("local_max_area", c.local_max_area, "largest", {0.01, 1});
  v.field("flip", c.flip, "probability of mirroring a crop", config::kUnit);
  v.field("jitter", c.jitter, "probability of changing a crop's brightness and contrast", config::kUnit);
  v.field("brightness", c.brightness, "x: factor from [1 - x, 1 + x]", config::kUnit);
  v.field("contrast", c.contrast, "x: factor from [1 - x, 1 + x]", config::kUnit);
  v.field("first_blur", c.first_blur, "probability of blurring the first global crop", config::kUnit);
  v.field("second_blur", c.second_blur, "of the second global crop", config::kUnit);
  v.field("local_blur", c.local_blur, "of a local crop", config::kUnit);
  v.field("max_sigma", c.max_sigma, "largest deviation of the blur in pixels; the smallest is 0.1", {0.1, 2});
  v.check(c.global_min_area <= c.global_max_area, "global_max_area", "is below global_min_area");
  v.check(c.local_min_area <= c.local_max_area, "local_max_area", "is below local_min_area");
}

Tensor crop_boxes(const Tensor& u, int64_t height, int64_t width, double min_area, double max_area) {
  const auto H = static_cast<double>(height), W = static_cast<double>(width);
  const Tensor area = (min_area + (max_area - min_area) * u.select(1, 0)) * (H * W);
  const Tensor aspect = (std::log(4.0 / 3.0) * (2.0 * u.select(1, 1) - 1.0)).exp();
  const Tensor w = (area * aspect).sqrt().clamp_max(W), h = (area / aspect).sqrt().clamp_max(H);
  return at::stack({u.select(1, 2) * (W - w), u.select(1, 3) * (H - h), w, h}, 1);
}

Tensor resize_boxes(const Tensor& images, const Tensor& boxes, const Tensor& flip, int64_t side) {
  const auto [B, C, H, W] = dims<4>(images);
  const Tensor centres = (at::arange(side, images.options()) + 0.5) / static_cast<double>(side);  // of the output, in [0, 1]
  const Tensor across = at::where(flip.unsqueeze(1), 1.0 - centres, centres);                      // [B, side]
  // Source pixels in units where the image is [-1, 1], as grid_sampler wants them without aligned corners.
  const auto place = [&](const Tensor& along, int64_t at, double extent) {
    return (boxes.select(1, at).unsqueeze(1) + along * boxes.select(1, at + 2).unsqueeze(1)) * (2.0 / extent) - 1.0;
  };
  const Tensor x = place(across, 0, static_cast<double>(W)), y = place(centres.expand({B, side}), 1, static_cast<double>(H));
  const Tensor grid = at::stack({x.unsqueeze(1).expand({B, side, side}), y.unsqueeze(2).expand({B, side, side})}, 3);
  constexpr int64_t kBilinear = 0, kBorder = 1;
  return at::grid_sampler_2d(images, grid, kBilinear, kBorder, /*align_corners=*/false);
}

Tensor jitter_images(const Tensor& images, const Tensor& brightness, const Tensor& contrast) {
  const Tensor bright = (images * view_factor(brightness)).clamp(0, 1);
  const Tensor mean = bright.mean({1, 2, 3}, /*keepdim=*/true);
  return (mean + (bright - mean) * view_factor(contrast)).clamp(0, 1);
}

Tensor blur_images(const Tensor& images, const Tensor& sigma) {
  constexpr int64_t kRadius = 2;
  const int64_t H = images.size(2), W = images.size(3);
  const Tensor offsets = at::arange(-kRadius, kRadius + 1, images.options());
  // A vanishing sigma gives exactly the middle pixel: exp of the others is 0.
  const Tensor weights = (-0.5 * (offsets / sigma.clamp_min(1e-3).unsqueeze(1)).square()).exp();
  const Tensor kernel = weights / weights.sum(1, /*keepdim=*/true);  // [B, 5]
  const Tensor wide = at::replication_pad2d(images, {kRadius, kRadius, kRadius, kRadius});
  Tensor rows, out;
  for (int64_t k = 0; k <= 2 * kRadius; ++k) {
    const Tensor part = wide.narrow(3, k, W) * view_factor(kernel.select(1, k));
    rows = rows.defined() ? rows + part : part;
  }
  for (int64_t k = 0; k <= 2 * kRadius; ++k) {
    const Tensor part = rows.narrow(2, k, H) * view_factor(kernel.select(1, k));
    out = out.defined() ? out + part : part;
  }
  return out;
}

Tensor dino_input(const Tensor& images) {
  const auto [B, C, H, W] = dims<4>(images);
  if (C != 1 && C != 3) fail<DataError>("images of {} channels: DINO reads grey or RGB ones", C);
  const auto channel = [&](double r, double g, double b) { return at::tensor({r, g, b}, images.options()).view({1, 3, 1, 1}); };
  return ((images * 0.5 + 0.5).expand({B, 3, H, W}) - channel(0.485, 0.456, 0.406)) / channel(0.229, 0.224, 0.225);
}

DinoViews make_views(const Tensor& images, const ViewKeys& keys, const DinoCropConfig& c) {
  const NoGrad no_grad;
  const Tensor x = images * 0.5 + 0.5;
  // A view's draws stand in columns of their own: more local crops change nothing about the others.
  const Tensor u = uniform_by_id(keys.ids.to(at::kCPU), (2 + c.locals) * kViewDraws, keys.seed, keys.stream, keys.step)
                       .to(images.device(), images.scalar_type());
  const int64_t side = c.global_size > 0 ? c.global_size : images.size(2);
  const auto view = [&](int64_t at, const ViewRecipe& recipe) {
    return dino_input(make_view(x, u.narrow(1, at * kViewDraws, kViewDraws), recipe, c) * 2.0 - 1.0);
  };
  DinoViews views;
  views.globals = at::cat({view(0, {side, c.global_min_area, c.global_max_area, c.first_blur}),
                           view(1, {side, c.global_min_area, c.global_max_area, c.second_blur})});
  std::vector<Tensor> locals;
  for (int64_t k = 0; k < c.locals; ++k) locals.push_back(view(2 + k, {c.local_size, c.local_min_area, c.local_max_area, c.local_blur}));
  if (!locals.empty()) views.locals = at::cat(locals);
  return views;
}

}  // namespace fewstep
