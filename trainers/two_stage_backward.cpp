#include "trainers/two_stage_backward.h"

#include "src/base/error.h"
#include "src/nn/gradients.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "src/tensor/shape.h"

namespace fewstep {
namespace {

// Discriminator windows share Stream::augment with the augmentations: columns far behind theirs.
constexpr int64_t kWindowColumn = 1 << 20;

Tensor take_at(const Tensor& images, const Tensor& first_y, const Tensor& first_x, at::IntArrayRef size) {
  std::vector<Tensor> rows;
  const Tensor ys = first_y.contiguous(), xs = first_x.contiguous();
  for (int64_t i = 0; i < images.size(0); ++i)
    rows.push_back(images[i].narrow(1, ys.const_data_ptr<int64_t>()[i], size[0]).narrow(2, xs.const_data_ptr<int64_t>()[i], size[1]));
  return at::stack(rows);
}

struct WindowAxis {
  Tensor inner, outer;
  int64_t inner_length, outer_length;
};
WindowAxis window_axis(const LatentCropConfig& c, const Tensor& uniform, int64_t length) {
  const int64_t inner = c.size, outer = std::min(length, inner + 2 * c.halo), places = length - inner + 1;
  const Tensor first = (uniform * static_cast<double>(places)).floor().to(at::kLong).clamp_max(places - 1);
  return {.inner = first, .outer = (first - c.halo).clamp(0, length - outer), .inner_length = inner, .outer_length = outer};
}

// The loss and its gradient at the images, whose own graph (if any) stays.
std::pair<Tensor, Tensor> loss_and_gradient(const Tensor& images, const PixelLoss& loss) {
  const Tensor leaf = images.detach().requires_grad_(true);
  const Tensor value = loss(leaf);
  FEW_CHECK(value.dim() == 0, "a pixel loss is a scalar, this has {} dimensions", value.dim());
  return {value.detach(), nn::gradients(value, {leaf}, /*retain_graph=*/false).front()};
}

// d sum(decode(window) * at_images) / d window
Tensor through_decoder(const Tensor& leaf, const Tensor& images, const Tensor& at_images) {
  return nn::gradients((images * at_images).sum(), {leaf}, /*retain_graph=*/false).front();
}

}  // namespace

void describe(config::Visitor& v, LatentCropConfig& c) {
  v.field("size", c.size, "side of the window of latents the discriminator sees; 0: all of the image", config::kNonNegative);
  v.field("halo", c.halo, "latents decoded around the window and cut away", config::kNonNegative);
}

LatentWindows latent_windows(const LatentCropConfig& c, const Tensor& ids, int64_t height, int64_t width, const CropKey& key) {
  if (c.size < 1 || c.halo < 0) fail<ConfigError>("discriminator crop: size {} must be at least 1 and halo {} at least 0", c.size, c.halo);
  if (c.size > height || c.size > width)
    fail<ConfigError>("discriminator crop of {} x {} latents is larger than the image of {} x {}; set its size to at most {}, or 0 for "
                      "all of it",
                      c.size, c.size, height, width, std::min(height, width));
  const Tensor rows = ids.to(at::kCPU, at::kLong);
  const Tensor u = uniform_by_id(rows, at::full_like(rows, kWindowColumn), 2, key.seed, Stream::augment, key.step);  // [B, 2]
  const WindowAxis y = window_axis(c, u.select(1, 0), height), x = window_axis(c, u.select(1, 1), width);
  return {.inner_y = y.inner, .inner_x = x.inner, .outer_y = y.outer, .outer_x = x.outer,
          .inner_height = y.inner_length, .inner_width = x.inner_length,
          .outer_height = y.outer_length, .outer_width = x.outer_length};
}

Tensor take_windows(const Tensor& latents, const LatentWindows& w) {
  return take_at(latents, w.outer_y, w.outer_x, {w.outer_height, w.outer_width});
}

Tensor trim_to_windows(const Tensor& images, const LatentWindows& w) {
  const int64_t factor = images.size(2) / w.outer_height;
  FEW_CHECK(images.size(2) == factor * w.outer_height && images.size(3) == factor * w.outer_width,
            "decoded {} x {} pixels of {} x {} latents: not a whole factor", images.size(2), images.size(3), w.outer_height, w.outer_width);
  return take_at(images, (w.inner_y - w.outer_y) * factor, (w.inner_x - w.outer_x) * factor,
                 {w.inner_height * factor, w.inner_width * factor});
}

Tensor take_pixel_windows(const Tensor& images, const LatentWindows& w, int64_t factor) {
  return take_at(images, w.inner_y * factor, w.inner_x * factor, {w.inner_height * factor, w.inner_width * factor});
}

PixelGradient pixel_gradient(const Tensor& latents, const Tensor& ids, const DecodeLatents& decode, const PixelLoss& loss,
                             const TwoStageOptions& options) {
  const auto [B, C, H, W] = dims<4>(latents);
  const at::AutoGradMode grad_mode(true);
  const bool cropped = options.crop.size > 0;
  const LatentWindows windows = cropped ? latent_windows(options.crop, ids, H, W, options.key) : LatentWindows{};
  const Tensor whole = latents.detach();
  const Tensor leaf = (cropped ? take_windows(whole, windows) : whole.view_as(whole)).detach().requires_grad_(true);
  const auto trim = [&](const Tensor& images) { return cropped ? trim_to_windows(images, windows) : images; };

  PixelGradient out;
  Tensor gradient;  // as leaf
  if (options.decode_part <= 0 || options.decode_part >= B) {
    const Tensor images = trim(decode(leaf));
    const auto [value, at_images] = loss_and_gradient(images, loss);
    out.loss = value, out.images = images.detach();
    gradient = through_decoder(leaf, images, at_images);
  } else {
    const auto parts = leaf.detach().split(options.decode_part);
    std::vector<Tensor> decoded, gradients;
    {
      const NoGrad no_grad;
      for (const Tensor& part : parts) decoded.push_back(decode(part));
    }
    const Tensor all = at::cat(decoded);
    decoded.clear();
    const Tensor every = all.detach().requires_grad_(true);  // windows differ from sample to sample: trimmed together
    const Tensor value = loss(trim(every));
    const Tensor at_images = nn::gradients(value, {every}, /*retain_graph=*/false).front();
    out.loss = value.detach(), out.images = trim(all).detach();
    int64_t first = 0;
    for (const Tensor& part : parts) {
      const Tensor z = part.detach().requires_grad_(true);
      gradients.push_back(through_decoder(z, decode(z), at_images.narrow(0, first, part.size(0))));
      first += part.size(0);
    }
    gradient = at::cat(gradients);
  }
  out.gradient = gradient;
  if (cropped) {  // put each window's gradient where it was taken
    out.gradient = at::zeros_like(whole);
    for (int64_t i = 0; i < B; ++i)
      out.gradient[i]
          .narrow(1, windows.outer_y[i].item<int64_t>(), windows.outer_height)
          .narrow(2, windows.outer_x[i].item<int64_t>(), windows.outer_width)
          .copy_(gradient[i]);
  }
  return out;
}

Tensor injected_gradient(const Tensor& x0, const Tensor& gradient) { return (x0 * gradient.detach()).sum(); }

Tensor pseudo_target(const Tensor& x0, const Tensor& gradient) { return (x0 - gradient).detach(); }

}  // namespace fewstep
