#include "src/nn/lora.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "src/base/error.h"
#include "src/nn/layers.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"

namespace fewstep::nn {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;

struct Net : Module {
  Conv2d conv{3, 4, {.kernel = 3, .stride = 2}};
  Linear to_q{16, 5}, not_to_q{16, 5};
  Net() {
    child("conv", conv);
    child("to_q", to_q);
    child("not_to_q", not_to_q);
    initialise(5);
    requires_grad(false);
  }
  Tensor operator()(const Tensor& x) const {  // [B, 3, 4, 4]
    const Tensor h = conv(x).flatten(1);
    return to_q(h) + not_to_q(h);
  }
};

Tensor input() { return normal_by_id(at::arange(2), {3, 4, 4}, 1, Stream::noise, 0); }

void randomise(Module& net, std::string_view adapter, int64_t id) {
  const NoGrad no_grad;
  at::Generator g = generator_for(2, Stream::noise, 1, id);
  for (const NamedTensor& n : net.adapter(adapter)) n.tensor.normal_(0, 0.3, g);
}

TEST(Lora, NewAdapterChangesNothingAndHasPeftNames) {
  Net net;
  const Tensor before = net(input());
  EXPECT_EQ(add_adapter(net, {.name = "student", .rank = 2}, 0), 3);
  const AdapterScope scope({{"student"}});
  EXPECT_TRUE(at::equal(net(input()), before));
  const NamedTensors a = net.adapter("student");
  ASSERT_EQ(a.size(), 6u);
  EXPECT_EQ(a[0].name, "conv.lora_A.weight");
  EXPECT_EQ(a[0].tensor.sizes(), at::IntArrayRef({2, 3, 3, 3}));
  EXPECT_EQ(a[1].tensor.sizes(), at::IntArrayRef({4, 2, 1, 1}));
  EXPECT_EQ(a[3].name, "to_q.lora_B.weight");
  EXPECT_EQ(a[3].tensor.sizes(), at::IntArrayRef({5, 2}));
  EXPECT_GT(a[0].tensor.abs().sum().item<double>(), 0.0);
  EXPECT_EQ(net.parameters().size(), 6u) << "adapters are listed apart";
}

TEST(Lora, TargetsMatchWholeNames) {
  Net net;
  EXPECT_EQ(add_adapter(net, {.name = "a", .targets = {"to_q"}}, 0), 1);
  EXPECT_EQ(net.adapter("a")[0].name, "to_q.lora_A.weight");
  EXPECT_THAT([&] { add_adapter(net, {.name = "b", .targets = {"to_k"}}, 0); },
              ThrowsMessage<ConfigError>(HasSubstr("to_k")));
  EXPECT_THROW(add_adapter(net, {.name = "a"}, 0), ConfigError);
  EXPECT_THROW(add_adapter(net, {.name = "c", .rank = 0}, 0), ConfigError);
}

TEST(Lora, MergedEqualsActive) {
  Net net;
  add_adapter(net, {.name = "a", .rank = 2, .alpha = 4}, 0);
  randomise(net, "a", 0);
  const Tensor base = net(input());
  Tensor active;
  {
    const AdapterScope scope({{"a", 0.7}});
    active = net(input());
  }
  EXPECT_GT((active - base).abs().max().item<double>(), 0.1);
  const TensorMap merged = merged_state(net, "a", 0.7);
  EXPECT_TRUE(net(input()).equal(base)) << "the module itself stays as it is";
  merge_adapter(net, "a", 0.7);
  for (const auto& [name, tensor] : net.state()) EXPECT_TRUE(tensor.equal(merged.at(name))) << name;
  EXPECT_LE((net(input()) - active).abs().max().item<double>(), 2e-6);
  EXPECT_TRUE(net.adapter("a").empty());
}

TEST(Lora, AdaptersSumWithStrengthsAndScopesNest) {
  Net net;
  add_adapter(net, {.name = "a", .rank = 2, .targets = {"to_q"}}, 0);
  add_adapter(net, {.name = "b", .rank = 3, .targets = {"to_q"}}, 0);
  randomise(net, "a", 0);
  randomise(net, "b", 1);
  const auto run = [&](std::vector<ActiveAdapter> active) {
    const AdapterScope scope(std::move(active));
    return net(input());
  };
  const Tensor base = net(input()), da = run({{"a"}}) - base, db = run({{"b"}}) - base;
  EXPECT_LE((run({{"a", 0.5}, {"b", -2.0}}) - (base + 0.5 * da - 2 * db)).abs().max().item<double>(), 1e-5);
  const AdapterScope outer({{"a"}});
  {
    const AdapterScope none({});
    EXPECT_TRUE(at::equal(net(input()), base));
  }
  EXPECT_EQ(active_adapters().size(), 1u);
  size_t elsewhere = 1;
  std::thread([&] { elsewhere = active_adapters().size(); }).join();
  EXPECT_EQ(elsewhere, 0u) << "scopes are of one thread";
}

TEST(Lora, GradientsReachTheActiveAdapterOnly) {
  Net net;
  add_adapter(net, {.name = "a", .rank = 2}, 0);
  add_adapter(net, {.name = "b", .rank = 2}, 0);
  randomise(net, "a", 0);
  {
    const AdapterScope scope({{"a"}});
    net(input()).square().sum().backward();
  }
  for (const NamedTensor& n : net.adapter("a")) EXPECT_TRUE(n.tensor.grad().defined()) << n.name;
  for (const NamedTensor& n : net.adapter("b")) EXPECT_FALSE(n.tensor.grad().defined()) << n.name;
  for (const NamedTensor& n : net.parameters()) EXPECT_FALSE(n.tensor.grad().defined()) << n.name;
}

TEST(Lora, SavedTensorsLoadStrictly) {
  Net net, other;
  add_adapter(net, {.name = "a", .rank = 2}, 0);
  add_adapter(other, {.name = "x", .rank = 2}, 9);
  randomise(net, "a", 0);
  TensorMap file;
  for (const NamedTensor& n : net.adapter("a")) file.emplace(n.name, n.tensor.detach().clone());
  load_adapter(other, "x", file, "lora.safetensors");
  const AdapterScope scope({{"a"}, {"x"}});
  EXPECT_TRUE(at::equal(net(input()), other(input())));
  file.emplace("to_k.lora_A.weight", at::ones({1}));
  file.at("to_q.lora_A.weight") = at::ones({3, 16});
  file.erase("conv.lora_B.weight");
  EXPECT_THAT([&] { load_adapter(other, "x", file, "lora.safetensors"); },
              ThrowsMessage<DataError>(AllOf(HasSubstr("lora.safetensors"), HasSubstr("missing: conv.lora_B.weight"),
                                             HasSubstr("not in the model: to_k"), HasSubstr("[3, 16] in the file"))));
  EXPECT_THROW(load_adapter(other, "y", file, "f"), Error);
  remove_adapter(other, "x");
  EXPECT_THROW(remove_adapter(other, "x"), Error);
}

}  // namespace
}  // namespace fewstep::nn
