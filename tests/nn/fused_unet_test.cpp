// Operators of the UNet: GroupNorm + SiLU, GEGLU, linear layers by oneDNN, against PyTorch's in float64 with gradients.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "src/base/error.h"
#include "src/nn/fused.h"
#include "src/nn/fused_norm.h"
#include "src/nn/onednn_linear.h"
#include "src/tensor/ops.h"

namespace fewstep::nn {
namespace {

using Operator = std::function<Tensor(const std::vector<Tensor>&)>;

Tensor normal_values(at::IntArrayRef shape, uint64_t seed) {
  at::Generator g = at::detail::createCPUGenerator(seed);
  return at::empty(shape, at::kFloat).normal_(0, 1, g);
}

// Value and all gradients of `fused` in float32 beside `plain` in float64.
void expect_equal_operators(const Operator& fused, const Operator& plain, const std::vector<Tensor>& inputs, double limit) {
  const auto run = [](const Operator& f, std::vector<Tensor> x, at::ScalarType type) {
    for (Tensor& t : x)
      if (t.defined()) t = t.detach().to(type).clone().requires_grad_(true);
    const Tensor y = f(x), seed = (at::arange(y.numel(), at::kDouble) * 0.37).sin().view(y.sizes()).to(type);
    std::vector<Tensor> wanted;
    for (const Tensor& t : x)
      if (t.defined()) wanted.push_back(t);
    std::vector<Tensor> out = torch::autograd::grad({y}, wanted, {seed});
    out.push_back(y.detach());
    return out;
  };
  const auto have = run(fused, inputs, at::kFloat), want = run(plain, inputs, at::kDouble);
  for (size_t i = 0; i < want.size(); ++i) {
    const double rms = std::sqrt(want[i].square().mean().item<double>());
    EXPECT_LE((have[i].to(at::kDouble) - want[i]).abs().max().item<double>(), limit * std::max(rms, 0.1)) << "tensor " << i;
  }
}

Tensor plain_norm_silu(const std::vector<Tensor>& x, int64_t groups) {
  const Tensor shifted = x[3].defined() ? x[0] + x[3].view({x[3].size(0), x[3].size(1), 1, 1}) : x[0];
  return at::silu(at::group_norm(shifted, groups, x[1], x[2], 1e-5));
}

Tensor fused_norm_silu(const std::vector<Tensor>& x, int64_t groups) {
  GroupNorm norm(groups, x[1].numel());
  norm.weight = x[1], norm.bias = x[2];
  return group_norm_silu(norm, x[0], x[3]);
}

TEST(FusedUnet, GroupNormSiluIsPyTorchs) {
  struct Case {
    int64_t batch, channels, groups, height, width;
    bool shift;
    double mean;
  };
  for (const Case& c : {Case{1, 4, 2, 1, 1, false, 0}, Case{2, 6, 3, 5, 7, true, 0}, Case{3, 32, 32, 8, 8, true, 0}, Case{2, 64, 8, 9, 31, true, 50}, Case{5, 12, 1, 4, 4, false, 3}}) {
    SCOPED_TRACE(fmt::format("{} x {} in {} groups, {} x {}", c.batch, c.channels, c.groups, c.height, c.width));
    const Tensor x = normal_values({c.batch, c.channels, c.height, c.width}, 1) + c.mean;
    expect_equal_operators([&](const auto& t) { return fused_norm_silu(t, c.groups); }, [&](const auto& t) { return plain_norm_silu(t, c.groups); },
                           {x, 1 + 0.3 * normal_values({c.channels}, 2), normal_values({c.channels}, 3),
                            c.shift ? normal_values({c.batch, c.channels}, 4) : Tensor()},
                           c.mean > 10 ? 1e-3 : 1e-4);
  }
}

TEST(FusedUnet, GroupNormSiluTakesOtherLayoutsAndTypes) {
  GroupNorm norm(2, 6);
  norm.initialise(1);
  const Tensor x = normal_values({2, 6, 4, 5}, 1), want = at::silu(norm(x));
  EXPECT_TRUE(at::allclose(group_norm_silu(norm, x.contiguous(at::MemoryFormat::ChannelsLast)), want, 1e-5, 1e-6));
  EXPECT_TRUE(at::allclose(group_norm_silu(norm, x.flatten(2)), want.flatten(2), 1e-5, 1e-6));
  EXPECT_THROW(group_norm_silu(norm, normal_values({2, 4, 4, 5}, 1)), Error);
  EXPECT_THROW(group_norm_silu(norm, x, normal_values({1, 6}, 1)), Error);
  Tensor bad = x.clone();
  bad[1][0][0][0] = NAN;
  const Tensor y = group_norm_silu(norm, bad);
  EXPECT_TRUE(y[1].narrow(0, 0, 3).isnan().all().item<bool>()) << "its group";
  EXPECT_FALSE(y[0].isnan().any().item<bool>() || y[1].narrow(0, 3, 3).isnan().any().item<bool>());
  norm.to(at::kDouble);
  EXPECT_TRUE(at::allclose(group_norm_silu(norm, x.to(at::kDouble)), want.to(at::kDouble), 1e-5, 1e-6));
}

TEST(FusedUnet, GegluIsPyTorchs) {
  const auto plain = [](const std::vector<Tensor>& x) {
    const std::vector<Tensor> half = x[0].chunk(2, -1);
    return half[0] * at::gelu(half[1]);
  };
  for (const auto& [rows, width] : {std::pair<int64_t, int64_t>{1, 1}, {3, 17}, {70, 515}})
    expect_equal_operators([](const auto& x) { return geglu(x[0]); }, plain, {3 * normal_values({rows, 2 * width}, 5)}, 1e-5);
  EXPECT_EQ(geglu(normal_values({2, 3, 8}, 1)).sizes(), (std::vector<int64_t>{2, 3, 4}));
  EXPECT_THROW(geglu(normal_values({2, 5}, 1)), Error);
  const Tensor gate = at::tensor({-200.0f, -9.0f, 0.0f, 9.0f, 200.0f, NAN}), y = geglu(at::cat({at::ones({6}), gate})), want = at::gelu(gate);
  EXPECT_TRUE(at::allclose(y.slice(0, 0, 5), want.slice(0, 0, 5), 1e-5, 1e-6));
  EXPECT_TRUE(std::isnan(y[5].item<float>()));
}

class WithOnednn : public testing::Test {
 protected:
  WithOnednn() : was_(onednn_pays(1 << 10, 1 << 10, 1 << 10)) { force_onednn(true); }
  ~WithOnednn() override { force_onednn(was_); }

 private:
  bool was_;
};

TEST_F(WithOnednn, LinearIsPyTorchs) {
  const auto plain = [](const std::vector<Tensor>& x) { return at::linear(x[0], x[1], x[2].defined() ? std::optional<Tensor>(x[2]) : std::nullopt); };
  const auto fast = [](const std::vector<Tensor>& x) { return onednn_linear(x[0], x[1], x[2]); };
  const auto values = [](int64_t in, int64_t out, bool bias) {
    return std::pair(normal_values({out, in}, 2) / std::sqrt(static_cast<double>(in)), bias ? normal_values({out}, 3) : Tensor());
  };
  for (const bool bias : {false, true})
    for (const auto& [rows, in, out] : {std::tuple<int64_t, int64_t, int64_t>{64, 128, 128}, {130, 257, 65}, {1, 3, 2}}) {  // the last: below the limit
      const auto [w, b] = values(in, out, bias);
      expect_equal_operators(fast, plain, {normal_values({rows, in}, 1), w, b}, 1e-4);
    }
  const auto [w, b] = values(96, 200, true);
  expect_equal_operators(fast, plain, {normal_values({2, 40, 96}, 4), w, b}, 1e-4);
  const Tensor x = normal_values({96, 128}, 1).t();  // not contiguous
  EXPECT_TRUE(at::allclose(onednn_linear(x, w, b), at::linear(x, w, b), 1e-4, 1e-4));
  EXPECT_TRUE(onednn_linear(x.to(at::kDouble), w.to(at::kDouble), {}).scalar_type() == at::kDouble);
}

TEST_F(WithOnednn, OnlyTheGradientsAskedForAreMade) {
  const Tensor x = normal_values({128, 128}, 1), w = normal_values({128, 128}, 2).requires_grad_(true);
  const Tensor y = onednn_linear(x, w, {});
  EXPECT_TRUE(y.requires_grad());
  EXPECT_TRUE(at::allclose(torch::autograd::grad({y.sum()}, {w})[0], x.sum(0).expand({128, 128}), 1e-3, 1e-3));
  EXPECT_FALSE(onednn_linear(x, w.detach(), {}).requires_grad());
}

TEST_F(WithOnednn, FusedOperatorsRefuseDoubleBackward) {
  GroupNorm norm(2, 4);
  norm.initialise(1);
  const Tensor x = normal_values({64, 4, 8, 16}, 1).requires_grad_(true), w = normal_values({512, 512}, 2);
  for (const Tensor& y : {group_norm_silu(norm, x), geglu(x)})
    EXPECT_THAT([&] { torch::autograd::grad({y.sum()}, {x}, {}, true, /*create_graph=*/true); }, ThrowsMessage<std::exception>(::testing::HasSubstr("create_graph")));
  if (!onednn_pays(64, 512, 512)) GTEST_SKIP() << "a libtorch without oneDNN";
  EXPECT_THAT([&] { torch::autograd::grad({onednn_linear(x.view({64, 512}), w, {}).sum()}, {x}, {}, true, true); },
              ThrowsMessage<std::exception>(::testing::HasSubstr("create_graph")));
}

}  // namespace
}  // namespace fewstep::nn
