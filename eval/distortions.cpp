#include "eval/distortions.h"

#include "src/base/error.h"
#include "src/io/image.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "src/tensor/shape.h"

namespace fewstep::eval {
namespace {

// Streams of one seed must not repeat each other: the step of Stream::eval tells the uses apart.
enum EvalDraw : int64_t { kNoise = 101, kGaussian = 102, kTokens = 103 };

Tensor to_bytes(const Tensor& x) { return x.round().clamp(0, 255).to(at::kByte); }

template <class F>
Tensor each_image(const Tensor& images, F f) {
  std::vector<Tensor> out;
  for (int64_t i = 0; i < images.size(0); ++i) out.push_back(f(images[i]));
  return out.empty() ? images.clone() : at::stack(out);
}

}  // namespace

std::span<const Distortion> distortions() {
  static const Distortion table[] = {
      {"blur",
       {0.5, 0.8, 1.2, 1.8, 2.7},
       "px",
       [](const Tensor& x, double l, uint64_t) { return gaussian_blur(x, l); }},
      {"noise", {8, 16, 32, 56, 96}, "grey levels", add_noise},
      {"jpeg",
       {70, 40, 20, 10, 4},
       "quality",
       [](const Tensor& x, double l, uint64_t) { return jpeg_round_trip(x, static_cast<int>(l)); }},
  };
  return table;
}

Tensor gaussian_blur(const Tensor& images, double sigma) {
  const NoGrad no_grad;
  const int64_t C = dims<4>(images)[1];
  const int64_t kOne[] = {1, 1}, kZero[] = {0, 0};
  const int64_t radius = std::max<int64_t>(1, static_cast<int64_t>(std::ceil(3 * sigma)));
  Tensor kernel = at::exp(at::square(at::arange(-radius, radius + 1, at::kFloat)) / (-2 * sigma * sigma));
  kernel = (kernel / kernel.sum()).reshape({1, 1, 1, -1}).expand({C, 1, 1, 2 * radius + 1});
  Tensor x = at::replication_pad2d(images.to(at::kFloat), {radius, radius, radius, radius});
  x = at::conv2d(x, kernel.contiguous(), {}, kOne, kZero, kOne, C);
  x = at::conv2d(x, kernel.transpose(2, 3).contiguous(), {}, kOne, kZero, kOne, C);
  return to_bytes(x);
}

Tensor add_noise(const Tensor& images, double sigma, uint64_t seed) {
  const auto [N, C, H, W] = dims<4>(images);
  const Tensor noise = normal_by_id(at::arange(N, at::kLong), {C, H, W}, seed, Stream::eval, kNoise);
  return to_bytes(images.to(at::kFloat) + noise * sigma);
}

Tensor jpeg_round_trip(const Tensor& images, int quality) {
  const auto channels = dims<4>(images)[1] == 1 ? io::Channels::grey : io::Channels::rgb;
  return each_image(images, [&](const Tensor& image) {
    return io::decode_image(io::encode_image(image, ".jpg", quality), "jpeg round trip", channels);
  });
}

Tensor drop_classes(const Tensor& images, const Tensor& labels, int64_t classes) {
  const Tensor kept = labels.ge(classes).nonzero().squeeze(1), lost = labels.lt(classes).nonzero().squeeze(1);
  if (kept.numel() == 0) fail("dropping {} classes leaves no image", classes);
  const Tensor substitutes = kept.index_select(0, at::arange(lost.numel()).remainder(kept.numel()));
  return images.index_copy(0, lost, images.index_select(0, substitutes));
}

Tensor down_up(const Tensor& images, int64_t factor) {
  const auto [N, C, H, W] = dims<4>(images);
  return each_image(images, [&, h = H, w = W](const Tensor& image) {
    return io::resize(io::resize(image, std::max<int64_t>(1, w / factor), std::max<int64_t>(1, h / factor)), w, h);
  });
}

ClassGaussian::ClassGaussian(const Tensor& images, const Tensor& labels) {
  const NoGrad no_grad;
  const auto [N, C, H, W] = dims<4>(images);
  const int64_t P = C * H * W;
  if (P > 4096)
    fail<ConfigError>("a full pixel covariance of {} x {} x {} images is too large; leave this set out", C, H, W);
  if (labels.numel() != N || N == 0 || labels.min().item<int64_t>() < 0)
    fail<ConfigError>("the class-conditional Gaussian needs images with class labels; leave this set out");
  shape_ = {C, H, W};
  std::vector<Tensor> means, factors;
  for (int64_t k = 0; k <= labels.max().item<int64_t>(); ++k) {
    const Tensor x = images.index_select(0, at::eq(labels, k).nonzero().squeeze(1)).reshape({-1, P}).to(at::kDouble);
    if (x.size(0) < 2) fail<DataError>("class {} has {} images: a covariance needs at least 2", k, x.size(0));
    const Tensor mean = x.mean(0), centred = x - mean;
    Tensor covariance = at::mm(centred.t(), centred) / static_cast<double>(x.size(0) - 1);
    // Border pixels are constant and N may be below P: a ridge far below one grey level makes it definite.
    covariance.diagonal().add_(1e-3);
    const auto [factor, info] = at::linalg_cholesky_ex(covariance);
    if (info.item<int>() != 0) fail<NumericError>("the pixel covariance of class {} is not positive definite", k);
    means.push_back(mean.to(at::kFloat));
    factors.push_back(factor.to(at::kFloat));
  }
  means_ = at::stack(means);
  factors_ = at::stack(factors);
}

Tensor ClassGaussian::sample(const Tensor& labels, uint64_t seed) const {
  const NoGrad no_grad;
  const int64_t N = labels.numel(), P = means_.size(1);
  const Tensor noise = normal_by_id(at::arange(N, at::kLong), {P}, seed, Stream::eval, kGaussian);  // [N, P]
  Tensor out = at::empty({N, P});
  for (int64_t k = 0; k < means_.size(0); ++k) {
    const Tensor rows = at::eq(labels, k).nonzero().squeeze(1);
    if (rows.numel() > 0) out.index_copy_(0, rows, means_[k] + at::mm(noise.index_select(0, rows), factors_[k].t()));
  }
  return to_bytes(out).reshape({N, shape_[0], shape_[1], shape_[2]});
}

Tensor independent_tokens(const Tensor& tokens, int64_t count, uint64_t seed) {
  const auto [N, L] = dims<2>(tokens);
  const Tensor u = uniform_by_id(at::arange(count, at::kLong), L, seed, Stream::eval, kTokens);  // [count, L]
  const Tensor rows = (u.to(at::kDouble) * static_cast<double>(N)).to(at::kLong).clamp_max(N - 1);
  return tokens.gather(0, rows);
}

}  // namespace fewstep::eval
