#include "src/nn/layers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "src/base/error.h"
#include "src/nn/attention.h"
#include "src/nn/fused.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"

namespace fewstep::nn {
namespace {

using Function = std::function<Tensor(const std::vector<Tensor>&)>;
using testing::HasSubstr;
using testing::ThrowsMessage;

Tensor randn(at::IntArrayRef shape, int64_t id, at::ScalarType dtype = at::kDouble) {
  at::Generator g = generator_for(11, Stream::noise, 0, id);
  return at::empty(shape, dtype).normal_(0, 1, g);
}

double difference(const Tensor& a, const Tensor& b) {
  EXPECT_EQ(a.sizes(), b.sizes());
  return (a.detach().to(at::kDouble) - b.detach().to(at::kDouble)).abs().max().item<double>();
}

std::vector<Tensor> gradients(const Function& f, const std::vector<Tensor>& inputs, const Tensor& seed) {
  std::vector<Tensor> x;
  for (const Tensor& t : inputs) x.push_back(t.detach().clone().set_requires_grad(true));
  return torch::autograd::grad({f(x)}, x, {seed});
}

// Central differences in float64 of sum(seed f(x)), every element.
void check_gradients(const Function& f, const std::vector<Tensor>& inputs) {
  const Tensor seed = randn(f(inputs).sizes(), 999);
  const std::vector<Tensor> got = gradients(f, inputs, seed);
  const NoGrad no_grad;
  for (size_t k = 0; k < inputs.size(); ++k) {
    std::vector<Tensor> x = inputs;
    x[k] = inputs[k].clone();
    const Tensor flat = x[k].view(-1), want = at::zeros_like(flat);
    for (int64_t i = 0; i < flat.numel(); ++i) {
      const double was = flat[i].item<double>(), h = 1e-5;
      flat[i] = was + h;
      const double above = (f(x) * seed).sum().item<double>();
      flat[i] = was - h;
      const double below = (f(x) * seed).sum().item<double>();
      flat[i] = was;
      want[i] = (above - below) / (2 * h);
    }
    EXPECT_LE(difference(got[k].reshape(-1), want), 1e-7) << "input " << k;
  }
}

// The float32 CPU kernel against the float64 composite, value and gradients.
void check_kernel(const Function& f, const std::vector<Tensor>& inputs, double tolerance = 5e-6) {
  std::vector<Tensor> wide;
  for (const Tensor& t : inputs) wide.push_back(t.to(at::kDouble));
  const Tensor y = f(inputs), want = f(wide);
  EXPECT_LE(difference(y, want), tolerance);
  const Tensor seed = randn(y.sizes(), 998, at::kFloat);
  const auto got = gradients(f, inputs, seed), ref = gradients(f, wide, seed.to(at::kDouble));
  for (size_t k = 0; k < got.size(); ++k) EXPECT_LE(difference(got[k], ref[k]), tolerance) << "gradient " << k;
}

TEST(Layers, LinearAndConvolutionAreTheirSums) {
  Linear linear(3, 2);
  linear.initialise(0);
  linear.to(at::kDouble);
  const Tensor x = randn({4, 3}, 1);
  EXPECT_LE(difference(linear(x), at::mm(x, linear.weight.t()) + linear.bias), 1e-14);
  Conv2d conv(4, 6, {.kernel = 3, .stride = 2, .padding = 1, .groups = 2});
  conv.initialise(0);
  conv.to(at::kDouble);
  const Tensor image = randn({1, 4, 5, 5}, 2), out = conv(image);
  EXPECT_EQ(out.sizes(), at::IntArrayRef({1, 6, 3, 3}));
  // Output channel 4 is in group 1: channels 2 and 3, around (2, 2).
  const Tensor patch = image[0].slice(0, 2, 4).slice(1, 1, 4).slice(2, 1, 4);
  EXPECT_NEAR(out[0][4][1][1].item<double>(), ((patch * conv.weight[4]).sum() + conv.bias[4]).item<double>(), 1e-13);
}

TEST(Layers, NormsAreTheirEquations) {
  const Tensor x = randn({2, 6, 3, 3}, 3);
  GroupNorm group(2, 6);
  group.initialise(0);
  group.to(at::kDouble);
  const Tensor g = x.view({2, 2, -1});
  EXPECT_LE(difference(group(x).view({2, 2, -1}),
                       (g - g.mean(-1, true)) / (g.var(-1, false, true) + 1e-5).sqrt()), 1e-12);
  const Tensor t = randn({5, 8}, 4);
  LayerNorm layer(8), plain(8, 1e-6, false);
  layer.initialise(0);
  layer.to(at::kDouble);
  EXPECT_LE(difference(layer(t), (t - t.mean(-1, true)) / (t.var(-1, false, true) + 1e-5).sqrt()), 1e-12);
  EXPECT_TRUE(plain.parameters().empty());
  EXPECT_EQ(plain(t).sizes(), t.sizes());
  EXPECT_LE(difference(rms_norm(t, at::full({8}, 2.0, at::kDouble), 1e-6),
                       2 * t / (t.square().mean(-1, true) + 1e-6).sqrt()), 1e-12);
  Embedding embedding(5, 3);
  embedding.initialise(0);
  EXPECT_TRUE(at::equal(embedding(at::full({1, 1}, 4, at::kLong))[0][0], embedding.weight[4]));
}

TEST(Layers, GradientsInFloat64) {
  check_gradients([](const auto& x) { return rms_norm(x[0], x[1], 1e-6); }, {randn({3, 7}, 1), randn({7}, 2)});
  check_gradients([](const auto& x) { return swiglu(x[0], x[1]); }, {randn({3, 5}, 1), randn({3, 5}, 2)});
  const RotaryTable t = rotary_table(4, 6, 100.0);
  check_gradients([&](const auto& x) { return apply_rotary(x[0], t.cos.to(at::kDouble), t.sin.to(at::kDouble)); },
                  {randn({2, 3, 4, 6}, 3)});
  check_gradients([](const auto& x) { return attention(x[0], x[1], x[2], {}, true); },
                  {randn({1, 2, 3, 4}, 4), randn({1, 1, 3, 4}, 5), randn({1, 1, 3, 4}, 6)});
}

// Odd sizes, so that vector bodies, their tails and the row groups of the backward pass all run.
TEST(Layers, CpuKernelsEqualTheCompositeInFloat64) {
  for (const auto& [rows, dim] : {std::pair<int64_t, int64_t>{1, 1}, {3, 31}, {65, 64}, {200, 515}})
    check_kernel([](const auto& x) { return rms_norm(x[0], x[1], 1e-6); },
                 {randn({rows, dim}, 1, at::kFloat), randn({dim}, 2, at::kFloat)}, 4e-5);
  for (int64_t n : {1, 17, 40001})
    check_kernel([](const auto& x) { return swiglu(x[0], x[1]); },
                 {4 * randn({n}, 3, at::kFloat), randn({n}, 4, at::kFloat)});
  for (int64_t d : {2, 6, 64}) {
    const RotaryTable t = rotary_table(9, d, 10000.0);
    const auto rotate = [&](const std::vector<Tensor>& x) {  // in the layout that split_heads gives
      const auto type = x[0].scalar_type();
      return apply_rotary(x[0].transpose(1, 2), t.cos.to(type), t.sin.to(type));
    };
    check_kernel(rotate, {randn({2, 9, 3, d}, 5, at::kFloat)}, 1e-6);
    const auto per_sample = [&](const std::vector<Tensor>& x) {  // positions differ between samples
      const auto type = x[0].scalar_type();
      const Tensor cos = at::stack({t.cos, t.cos.flip(0)}).unsqueeze(1);
      const Tensor sin = at::stack({t.sin, t.sin.flip(0)}).unsqueeze(1);
      return apply_rotary(x[0], cos.to(type), sin.to(type));
    };
    check_kernel(per_sample, {randn({2, 3, 9, d}, 6, at::kFloat)}, 1e-6);
  }
}

TEST(Layers, KernelsKeepNanAndExtremes) {
  const Tensor gate = at::tensor({-200.0f, -50.0f, 0.0f, 50.0f, 200.0f, NAN}), one = at::ones({6});
  const Tensor y = swiglu(gate, one), want = at::silu(gate);
  EXPECT_TRUE(at::allclose(y.slice(0, 0, 5), want.slice(0, 0, 5), 1e-6, 1e-30));
  EXPECT_TRUE(std::isnan(y[5].item<float>()));
  Tensor x = at::ones({2, 40});
  x[1][39] = NAN;
  const Tensor n = rms_norm(x, at::ones({40}), 1e-6);
  EXPECT_FALSE(n[0].isnan().any().item<bool>());
  EXPECT_TRUE(n[1].isnan().all().item<bool>());
}

TEST(Layers, FusedOperatorsRefuseDoubleBackward) {
  const Tensor x = randn({4, 8}, 1, at::kFloat).set_requires_grad(true), w = at::ones({8});
  EXPECT_THAT([&] { torch::autograd::grad({rms_norm(x, w, 1e-6).sum()}, {x}, {}, true, /*create_graph=*/true); },
              ThrowsMessage<std::exception>(HasSubstr("create_graph")));
}

TEST(Layers, HalfPrecisionRmsNormFollowsTransformers) {
  const Tensor x = randn({4, 16}, 1, at::kFloat).to(at::kBFloat16), w = randn({16}, 2, at::kFloat).to(at::kBFloat16);
  const Tensor h = x.to(at::kFloat);
  const Tensor want = w * (h * at::rsqrt(h.pow(2).mean(-1, true) + 1e-6)).to(at::kBFloat16);
  EXPECT_TRUE(at::equal(rms_norm(x, w, 1e-6), want));
}

Tensor plain_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& mask) {
  const int64_t repeat = q.size(1) / k.size(1);
  const Tensor keys = k.repeat_interleave(repeat, 1), values = v.repeat_interleave(repeat, 1);
  Tensor scores = at::matmul(q, keys.transpose(-1, -2)) / std::sqrt(static_cast<double>(q.size(3)));
  if (mask.defined()) scores = scores.masked_fill(mask.logical_not(), -INFINITY);
  return at::matmul(at::softmax(scores, -1), values);
}

TEST(Attention, EqualsItsEquation) {
  const Tensor q = randn({2, 4, 5, 8}, 1), k = randn({2, 2, 5, 8}, 2), v = randn({2, 2, 5, 8}, 3);
  EXPECT_LE(difference(attention(q, k, v), plain_attention(q, k, v, {})), 1e-12);
  const Tensor tril = at::ones({1, 1, 5, 5}, at::kBool).tril();
  EXPECT_LE(difference(attention(q, k, v, {}, true), plain_attention(q, k, v, tril)), 1e-12);
  Tensor mask = randn({2, 1, 5, 5}, 4).gt(0).logical_or(at::eye(5, at::kBool));
  EXPECT_LE(difference(attention(q, k, v, mask), plain_attention(q, k, v, mask)), 1e-12);
  EXPECT_THROW(attention(q, k, v, mask, true), Error);
  EXPECT_THROW(attention(q.slice(2, 0, 3), k, v, {}, true), Error);
  EXPECT_THROW(attention(randn({2, 3, 5, 8}, 1), k, v), Error);
}

TEST(Attention, TakesTheFlashKernelOnTheCpu) {
  const auto head = [](int64_t heads, int64_t id) {
    return randn({1, 16, heads, 8}, id, at::kFloat).transpose(1, 2).set_requires_grad(true);
  };
  const Tensor q = head(4, 1), k = head(2, 2), v = head(2, 3), mask = at::ones({1, 1, 16, 16}, at::kBool).tril();
  for (const Tensor& y : {attention(q, k, v, {}, true), attention(q, k, v, mask), attention(q, k, v)})
    EXPECT_THAT(y.grad_fn()->name(), HasSubstr("FlashAttentionForCpu"));
  EXPECT_LE(difference(attention(q, k, v, {}, true), attention(q, k, v, mask)), 1e-6);
}

TEST(Attention, RotaryRotates) {
  const RotaryTable t = rotary_table(6, 8, 10000.0);
  EXPECT_EQ(t.cos.sizes(), at::IntArrayRef({6, 8}));
  EXPECT_NEAR(t.cos[3][1].item<double>(), std::cos(3 * std::pow(10000.0, -2.0 / 8)), 1e-6);
  EXPECT_NEAR(t.sin[5][7].item<double>(), std::sin(5 * std::pow(10000.0, -6.0 / 8)), 1e-6);
  const Tensor q = randn({1, 1, 1, 8}, 1, at::kFloat).expand({1, 1, 6, 8});
  const Tensor y = apply_rotary(q, t.cos, t.sin);
  EXPECT_LE(difference(y.norm(2, {-1}), q.norm(2, {-1})), 1e-6);
  // The inner product depends on the distance only.
  const Tensor gram = at::matmul(y, y.transpose(-1, -2))[0][0];
  EXPECT_NEAR(gram[0][2].item<double>(), gram[3][5].item<double>(), 1e-5);
  EXPECT_THROW(rotary_table(6, 7, 10000.0), Error);
  EXPECT_THROW(apply_rotary(q, t.cos.slice(0, 0, 5), t.sin.slice(0, 0, 5)), Error);
}

}  // namespace
}  // namespace fewstep::nn
