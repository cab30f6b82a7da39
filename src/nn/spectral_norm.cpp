#include "src/nn/spectral_norm.h"

#include <cmath>

#include "src/base/error.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep::nn {
namespace {

constexpr double kSpectralEps = 1e-12;  // torch.nn.utils.spectral_norm

Tensor unit_vector(const Tensor& x) { return x / x.norm().clamp_min(kSpectralEps); }

std::optional<Tensor> bias_or_none(const Tensor& t) { return t.defined() ? std::optional<Tensor>(t) : std::nullopt; }

}  // namespace

SpectralLayer::SpectralLayer(at::IntArrayRef shape, bool with_bias) {
  const int64_t out = shape[0], rest = c10::multiply_integers(shape) / out;
  if (with_bias) parameter("bias", bias, {out});
  parameter("weight_orig", weight_orig, shape);
  buffer("weight_u", weight_u, {out});
  buffer("weight_v", weight_v, {rest});
}

void SpectralLayer::reset(at::Generator& generator) {
  const double bound = 1.0 / std::sqrt(static_cast<double>(weight_v.size(0)));
  init_uniform(weight_orig, bound, generator);
  if (bias.defined()) init_uniform(bias, bound, generator);
  const NoGrad no_grad;
  for (Tensor* vector : {&weight_u, &weight_v}) {
    init_normal(*vector, 1.0, generator);
    if (!vector->is_meta()) vector->copy_(unit_vector(*vector));
  }
}

Tensor SpectralLayer::weight() const {
  const Tensor matrix = weight_orig.flatten(1);  // [out, rest]
  Tensor u = weight_u, v = weight_v;
  if (training()) {
    const NoGrad no_grad;
    v.copy_(unit_vector(at::mv(matrix.t(), u)));
    u.copy_(unit_vector(at::mv(matrix, v)));
    u = u.clone(), v = v.clone();  // the graph keeps the values of this pass: the next one overwrites the buffers
  }
  return weight_orig / at::dot(u, at::mv(matrix, v));
}

SpectralLinear::SpectralLinear(int64_t in_features, int64_t out_features, bool with_bias)
    : SpectralLayer({out_features, in_features}, with_bias) {}

Tensor SpectralLinear::operator()(const Tensor& x) const { return at::linear(x, weight(), bias_or_none(bias)); }

SpectralConv1d::SpectralConv1d(int64_t in_channels, int64_t out_channels, const SpectralConvOptions& options)
    : SpectralLayer({out_channels, in_channels, options.kernel}, options.bias), options_(options) {}

Tensor SpectralConv1d::operator()(const Tensor& x) const {
  const int64_t padding = options_.padding;
  if (!options_.circular || padding == 0) return at::conv1d(x, weight(), bias_or_none(bias), options_.stride, padding);
  if (x.size(-1) < padding)
    fail("SpectralConv1d: {} positions are fewer than the circular padding of {}; a smaller kernel or a finer feature map is needed",
         x.size(-1), padding);
  const Tensor round = at::cat({x.narrow(-1, x.size(-1) - padding, padding), x, x.narrow(-1, 0, padding)}, -1);
  return at::conv1d(round, weight(), bias_or_none(bias), options_.stride);
}

SpectralConv2d::SpectralConv2d(int64_t in_channels, int64_t out_channels, const SpectralConvOptions& options)
    : SpectralLayer({out_channels, in_channels, options.kernel, options.kernel}, options.bias), options_(options) {
  FEW_CHECK(!options.circular, "SpectralConv2d has no circular padding");
}

Tensor SpectralConv2d::operator()(const Tensor& x) const {
  return at::conv2d(x, weight(), bias_or_none(bias), options_.stride, options_.padding);
}

}  // namespace fewstep::nn
