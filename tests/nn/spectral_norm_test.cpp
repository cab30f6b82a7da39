#include "src/nn/spectral_norm.h"

#include <gtest/gtest.h>

#include "src/io/safetensors.h"
#include "src/nn/gradients.h"
#include "src/tensor/ops.h"

namespace fewstep::nn {
namespace {

double spectral_gap(const Tensor& a, const Tensor& b) {
  EXPECT_EQ(a.sizes(), b.sizes());
  return (a.detach() - b.detach()).abs().max().item<double>();
}

// Three training passes, a gradient and an eval pass as torch.nn.utils.spectral_norm makes them (tools/golden/discriminator.py).
template <class Layer>
void expect_pytorch(Layer& layer, const std::string& name) {
  SCOPED_TRACE(name);
  const TensorMap golden = io::Safetensors(FEWSTEP_SOURCE_DIR "/tests/golden/feature_discriminator/spectral.safetensors").all();
  TensorMap state;
  for (const auto& [key, value] : golden)
    if (const std::string before = name + ".before."; key.starts_with(before)) state[key.substr(before.size())] = value;
  layer.load(state, "golden");
  layer.requires_grad(true);
  const Tensor& x = golden.at(name + ".x");
  Tensor y;
  for (int step = 0; step < 3; ++step) {
    y = layer(x);
    EXPECT_LT(spectral_gap(y, golden.at(name + ".y" + std::to_string(step))), 2e-6) << step;
  }
  const Tensor grad = gradients(y.square().sum(), {layer.weight_orig}, false).front();
  EXPECT_LT(spectral_gap(grad, golden.at(name + ".grad")) / grad.abs().max().item<double>(), 2e-6);
  EXPECT_LT(spectral_gap(layer.weight_u, golden.at(name + ".after.weight_u")), 1e-6);
  EXPECT_LT(spectral_gap(layer.weight_v, golden.at(name + ".after.weight_v")), 1e-6);
  layer.train(false);
  EXPECT_LT(spectral_gap(layer(x), golden.at(name + ".y_eval")), 2e-6);
}

TEST(SpectralNorm, EqualsPyTorch) {
  SpectralLinear linear(5, 7);
  expect_pytorch(linear, "linear");
  SpectralConv1d conv1d(4, 6, {.kernel = 3, .stride = 1, .padding = 1});
  expect_pytorch(conv1d, "conv1d");
  SpectralConv2d conv2d(3, 5, {.kernel = 3, .stride = 2, .padding = 1});
  expect_pytorch(conv2d, "conv2d");
}

TEST(SpectralNorm, ConvergesToTheLargestSingularValue) {
  SpectralLinear layer(12, 9);
  layer.initialise(3);
  for (int i = 0; i < 300; ++i) layer.weight();
  layer.train(false);
  EXPECT_NEAR(at::linalg_svdvals(layer.weight())[0].item<double>(), 1.0, 1e-5);
}

TEST(SpectralNorm, EvalLeavesTheVectorsAndTrainingMovesThem) {
  SpectralConv1d layer(4, 4, {.kernel = 1, .stride = 1, .padding = 0});
  layer.initialise(1);
  const Tensor u = layer.weight_u.clone();
  layer.train(false);
  layer(at::ones({1, 4, 3}));
  EXPECT_TRUE(at::equal(u, layer.weight_u));
  layer.train(true);
  layer(at::ones({1, 4, 3}));
  EXPECT_FALSE(at::equal(u, layer.weight_u));
}

// State (with u and v) into another object: the next passes are equal bit for bit.
TEST(SpectralNorm, ResumesBitForBit) {
  SpectralLinear one(6, 5), two(6, 5);
  one.initialise(1), two.initialise(2);
  const Tensor x = at::linspace(-1, 1, 12).view({2, 6});
  one(x), one(x);
  TensorMap state;
  for (const NamedTensor& t : one.state()) state[t.name] = t.tensor.clone();
  EXPECT_EQ(state.count("weight_u"), 1u);
  two.load(state, "state");
  EXPECT_TRUE(at::equal(one(x), two(x)));
  EXPECT_TRUE(at::equal(one(x), two(x)));
}

// Both passes' graphs are alive: the second must not overwrite what the first one's backward reads.
TEST(SpectralNorm, TwoPassesBeforeOneBackward) {
  SpectralLinear layer(4, 3);
  layer.initialise(5);
  layer.requires_grad(true);
  const Tensor x = at::ones({1, 4});
  const Tensor first = layer(x).sum(), second = layer(2 * x).sum();
  EXPECT_TRUE(gradients(first + second, {layer.weight_orig}, false).front().isfinite().all().item<bool>());
}

TEST(SpectralNorm, CircularPaddingGoesRound) {
  SpectralConv1d layer(1, 1, {.kernel = 3, .stride = 1, .padding = 1, .circular = true, .bias = false});
  layer.initialise(1);
  layer.train(false);
  const Tensor x = at::arange(5, at::kFloat).view({1, 1, 5});
  EXPECT_LT(spectral_gap(layer(x.roll({2}, {2})), layer(x).roll({2}, {2})), 1e-6);
  EXPECT_ANY_THROW(layer(at::ones({1, 1, 0})));
}

}  // namespace
}  // namespace fewstep::nn
