#include "src/nn/recompute.h"

#include <ATen/CPUGeneratorImpl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "src/base/error.h"
#include "src/nn/layers.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"

namespace fewstep::nn {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

struct Mlp : Module {
  Linear up{6, 12}, down{12, 6};
  RMSNorm norm{6};
  mutable int calls = 0;
  Mlp() {
    child("up", up);
    child("down", down);
    child("norm", norm);
    initialise(3);
  }
  Tensor operator()(const Tensor& x) const {
    ++calls;
    return x + tap("out", down(at::silu(tap("up", up(norm(x))))));
  }
};

Tensor input(int64_t id = 0) {
  return normal_by_id(at::arange(id, id + 4), {6}, 1, Stream::noise, 0).set_requires_grad(true);
}
Tensor again(const Mlp& mlp, const Tensor& x) {
  return recompute(mlp, [&](const Tensors& in) { return Tensors{mlp(in[0])}; }, {x})[0];
}
std::vector<Tensor> leaves(const Mlp& mlp, const Tensor& x) {
  std::vector<Tensor> out{x};
  for (const NamedTensor& n : mlp.parameters()) out.push_back(n.tensor);
  return out;
}
void expect_same(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(at::equal(a[i], b[i])) << i;
}

TEST(Recompute, EqualsPlainBitForBitUnderGrad) {
  Mlp mlp;
  const Tensor x = input();
  const Tensor plain = mlp(x).square().sum();
  const auto want = torch::autograd::grad({plain}, leaves(mlp, x));
  mlp.calls = 0;
  const Tensor y = again(mlp, x);
  EXPECT_TRUE(y.requires_grad());
  EXPECT_EQ(mlp.calls, 1);
  const Tensor loss = y.square().sum();
  EXPECT_TRUE(at::equal(loss, plain));
  expect_same(torch::autograd::grad({loss}, leaves(mlp, x)), want);
  EXPECT_EQ(mlp.calls, 2);
  for (const NamedTensor& n : mlp.parameters()) EXPECT_FALSE(n.tensor.grad().defined()) << "grad() must not accumulate";
}

TEST(Recompute, EqualsPlainUnderBackwardWithTheModuleCalledTwice) {
  Mlp mlp, same;
  const Tensor x = input(), y = input();
  again(mlp, again(mlp, x)).square().sum().backward();
  same(same(y)).square().sum().backward();
  EXPECT_TRUE(at::equal(x.grad(), y.grad()));
  for (size_t i = 0; i < mlp.parameters().size(); ++i)
    EXPECT_TRUE(at::equal(mlp.parameters()[i].tensor.grad(), same.parameters()[i].tensor.grad())) << i;
}

TEST(Recompute, NestsAndTakesPartialGradients) {
  Mlp a, b;
  const Tensor x = input();
  const auto both = [&](const Tensors& in) { return Tensors{again(b, again(a, in[0])), at::arange(3)}; };
  struct Pair : Module {
    Pair(Mlp& p, Mlp& q) {
      child("p", p);
      child("q", q);
    }
  } pair(a, b);
  const Tensors out = recompute(pair, both, {x});
  EXPECT_FALSE(out[1].requires_grad());
  const auto got = torch::autograd::grad({out[0].sum()}, {a.up.weight, x});
  const auto want = torch::autograd::grad({b(a(x)).sum()}, {a.up.weight, x});
  expect_same(got, want);
}

TEST(Recompute, AdapterOfTheForwardPassIsUsed) {
  Mlp mlp;
  mlp.requires_grad(false);
  add_adapter(mlp, {.name = "a", .rank = 2, .targets = {"up"}}, 0);
  add_adapter(mlp, {.name = "b", .rank = 2, .targets = {"up"}}, 1);
  for (const char* name : {"a", "b"}) {
    const NoGrad no_grad;
    mlp.adapter(name)[1].tensor.fill_(0.2);
  }
  const std::vector<Tensor> a = {mlp.adapter("a")[0].tensor, mlp.adapter("a")[1].tensor};
  const Tensor x = input().detach();
  Tensor loss, plain;
  {
    const AdapterScope scope({{"a", 0.5}});
    loss = again(mlp, x).square().sum();
    plain = mlp(x).square().sum();
  }
  std::vector<Tensor> got;
  {
    const AdapterScope scope({{"b"}});  // switched before backward
    got = torch::autograd::grad({loss}, a);
    EXPECT_EQ(active_adapters()[0].name, "b");
  }
  expect_same(got, torch::autograd::grad({plain}, a));
  for (const NamedTensor& n : mlp.adapter("b")) EXPECT_FALSE(n.tensor.grad().defined());
}

TEST(Recompute, TapsRecordTheForwardPassOnce) {
  Mlp mlp;
  const Tensor x = input();
  const TapScope taps({"up"});
  const Tensor loss = again(mlp, x).sum();
  const Tensor recorded = taps.values().at("up");
  loss.backward();
  EXPECT_EQ(taps.values().at("up").data_ptr(), recorded.data_ptr());
}

TEST(Recompute, DefaultGeneratorAndAutocastAreRestored) {
  Mlp mlp;
  const Tensor x = input();
  const auto f = [&](const Tensors& in) { return Tensors{at::dropout(mlp(in[0]), 0.5, true).to(at::kFloat)}; };
  const auto run = [&](bool recomputed) {
    at::manual_seed(7);
    Tensor y;
    {
      const Autocast bf16(at::kCPU, at::kBFloat16);
      y = recomputed ? recompute(mlp, f, {x})[0] : f({x})[0];
    }
    const Tensor after = at::rand({3});  // backward must leave the generator where it was
    return std::make_pair(torch::autograd::grad({y.square().sum()}, leaves(mlp, x)), at::cat({after, at::rand({3})}));
  };
  const auto [got, random] = run(true);
  const auto [want, plain_random] = run(false);
  expect_same(got, want);
  EXPECT_TRUE(at::equal(random, plain_random));
}

TEST(Recompute, WithoutGradientsItIsTheFunction) {
  Mlp mlp;
  const NoGrad no_grad;
  EXPECT_FALSE(again(mlp, input()).requires_grad());
}

TEST(Recompute, MisuseIsNamed) {
  Mlp mlp;
  const Tensor x = input();
  const Tensor loss = again(mlp, x).sum();
  EXPECT_THAT([&] { torch::autograd::grad({loss}, {x}, {}, true, /*create_graph=*/true); },
              ThrowsMessage<std::exception>(HasSubstr("gradient of a gradient")));
  const Tensor once = again(mlp, x).sum();
  torch::autograd::grad({once}, {x});
  EXPECT_THROW(torch::autograd::grad({once}, {x}), std::exception);
  const Tensor kept = again(mlp, x).sum();
  const auto first = torch::autograd::grad({kept}, {x}, {}, /*retain_graph=*/true);
  expect_same(torch::autograd::grad({kept}, {x}), first);
}

}  // namespace
}  // namespace fewstep::nn
