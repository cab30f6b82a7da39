#include "src/nn/module.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "src/base/error.h"
#include "src/nn/layers.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep::nn {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using testing::ThrowsMessage;

struct Block : Module {
  Linear up{4, 8}, down{8, 4, false};
  Block() {
    child("up", up);
    child("down", down);
    down.tag("out");
  }
};

struct Net : Module {
  Embedding embed{6, 4};
  ModuleList<Block> blocks;
  RMSNorm norm{4};
  Linear head{4, 6, false};
  Tensor mean;
  Net() {
    child("embed", embed);
    blocks.add();
    blocks.add();
    blocks[1].tag("last");
    child("blocks", blocks);
    child("norm", norm);
    child("head", head);
    tie("head.weight", head.weight, embed.weight);
    buffer("mean", mean, {4});
  }
};

std::vector<std::string> names(const NamedTensors& list) {
  std::vector<std::string> out;
  for (const NamedTensor& n : list) out.push_back(n.name);
  return out;
}

TensorMap copy_of(const Net& net) {
  TensorMap out;
  for (const NamedTensor& n : net.state()) out.emplace(n.name, n.tensor.detach().clone());
  return out;
}

TEST(Module, ListsNamesInOrderAndTiedOnce) {
  Net net;
  EXPECT_THAT(names(net.parameters()),
              ElementsAre("embed.weight", "blocks.0.up.weight", "blocks.0.up.bias", "blocks.0.down.weight",
                          "blocks.1.up.weight", "blocks.1.up.bias", "blocks.1.down.weight", "norm.weight"));
  EXPECT_THAT(names(net.buffers()), ElementsAre("mean"));
  EXPECT_EQ(names(net.state()).back(), "mean");
  EXPECT_EQ(net.parameter_count(), 24 + 2 * (32 + 8 + 32) + 4);
  EXPECT_THAT(names(net.tagged("out")), ElementsAre("blocks.0.down.weight", "blocks.1.down.weight"));
  EXPECT_THAT(names(net.tagged("last")), ElementsAre("blocks.1.up.weight", "blocks.1.up.bias", "blocks.1.down.weight"));
  EXPECT_TRUE(net.tagged("nothing").empty());
  std::vector<std::string> visited;
  net.visit([&](const std::string& name, Module&) { visited.push_back(name); });
  EXPECT_THAT(visited, ElementsAre("", "embed", "blocks", "blocks.0", "blocks.0.up", "blocks.0.down", "blocks.1",
                                   "blocks.1.up", "blocks.1.down", "norm", "head"));
}

TEST(Module, InitialiseIsKeyedBySeedAndName) {
  Net a, b;
  a.initialise(1);
  b.initialise(1);
  for (const auto& [name, t] : copy_of(a)) EXPECT_TRUE(at::equal(t, copy_of(b).at(name))) << name;
  EXPECT_FALSE(at::equal(a.blocks[0].up.weight, a.blocks[1].up.weight));
  EXPECT_LE(a.blocks[0].up.weight.abs().max().item<double>(), 0.5);  // 1 / sqrt(4)
  EXPECT_GT(a.blocks[0].up.weight.abs().max().item<double>(), 0.3);
  EXPECT_TRUE(at::equal(a.norm.weight, at::ones({4})));
  b.initialise(2);
  EXPECT_FALSE(at::equal(a.blocks[0].up.weight, b.blocks[0].up.weight));
}

TEST(Module, LoadReportsEverythingAtOnce) {
  Net net;
  net.initialise(0);
  TensorMap t = copy_of(net);
  t.emplace("blocks.0.up.wieght", t.at("blocks.0.up.weight"));
  t.erase("blocks.0.up.weight");
  t.at("norm.weight") = at::ones({5});
  t.emplace("teacher.x", at::ones({1}));
  EXPECT_THAT([&] { net.load(t, "model.safetensors"); },
              ThrowsMessage<DataError>(AllOf(
                  HasSubstr("model.safetensors"), HasSubstr("1 missing:\n    blocks.0.up.weight"),
                  HasSubstr("blocks.0.up.wieght (did you mean 'blocks.0.up.weight'?)"), HasSubstr("teacher.x"),
                  HasSubstr("norm.weight: [5] in the file, [4] in the model"), Not(HasSubstr("down")))));
  t.at("norm.weight") = at::ones({4});
  EXPECT_THROW(net.load(t, "f"), DataError);
  EXPECT_NO_THROW(net.load(t, "f", {.allow_missing = {"blocks.0."}, .allow_extra = {"teacher.", "blocks.0.up.w"}}));
}

TEST(Module, LoadToleratesTiedNamesAndHarmlessBuffers) {
  Net net, other;
  net.initialise(0);
  other.initialise(1);
  TensorMap t = copy_of(net);
  t.emplace("head.weight", t.at("embed.weight"));
  t.emplace("blocks.0.position_ids", at::arange(3));
  t.emplace("rotary_emb.inv_freq", at::ones({2}));
  t.emplace("bn.num_batches_tracked", at::zeros({}, at::kLong));
  other.load(t, "f");
  EXPECT_TRUE(at::equal(other.embed.weight, net.embed.weight));
  EXPECT_EQ(other.head.weight.unsafeGetTensorImpl(), other.embed.weight.unsafeGetTensorImpl());
  t.erase("embed.weight");  // only the second name
  t.at("head.weight") = at::full({6, 4}, 2.0);
  other.load(t, "f");
  EXPECT_EQ(other.embed.weight.sum().item<double>(), 48.0);
  t.erase("head.weight");
  EXPECT_THAT([&] { other.load(t, "f"); }, ThrowsMessage<DataError>(HasSubstr("embed.weight")));
}

TEST(Module, LoadConvertsTypesAndAliasesOnRequest) {
  Net net;
  net.initialise(0);
  TensorMap t = copy_of(net);
  t.at("norm.weight") = at::full({4}, 0.5, at::kBFloat16);
  const Tensor handle = net.embed.weight;
  net.load(t, "f", {.zero_copy = true});
  EXPECT_EQ(net.embed.weight.data_ptr(), t.at("embed.weight").data_ptr());
  EXPECT_EQ(handle.data_ptr(), t.at("embed.weight").data_ptr()) << "identity is kept";
  EXPECT_EQ(net.head.weight.data_ptr(), t.at("embed.weight").data_ptr());
  EXPECT_FALSE(net.embed.weight.requires_grad());
  EXPECT_EQ(net.norm.weight.scalar_type(), at::kFloat);  // converted, so copied
  EXPECT_EQ(net.norm.weight.sum().item<double>(), 2.0);
}

TEST(Module, MetaCostsNothingAndLoads) {
  Net real;
  real.initialise(3);
  const BuildScope scope(at::kMeta, at::kBFloat16);
  Net net;
  Linear huge(1 << 20, 1 << 20);  // 2 TB
  EXPECT_EQ(huge.parameter_count(), (int64_t{1} << 40) + (1 << 20));
  EXPECT_TRUE(net.embed.weight.is_meta());
  net.initialise(0);
  net.load(copy_of(real), "f");
  EXPECT_EQ(net.embed.weight.device(), at::kCPU);
  EXPECT_EQ(net.embed.weight.scalar_type(), at::kBFloat16);
  EXPECT_EQ(net.head.weight.unsafeGetTensorImpl(), net.embed.weight.unsafeGetTensorImpl());
  EXPECT_TRUE(net.embed.weight.requires_grad());
  EXPECT_TRUE(at::equal(net.blocks[1].up.weight, real.blocks[1].up.weight.to(at::kBFloat16)));
  EXPECT_EQ(net.parameters().size(), 8u);
}

TEST(Module, BuildScopeEnds) {
  {
    const BuildScope scope(at::kMeta);
    EXPECT_EQ(build_options().device(), at::kMeta);
  }
  EXPECT_EQ(build_options().device(), at::kCPU);
}

TEST(Module, ToKeepsIdentity) {
  Net net;
  net.initialise(0);
  add_adapter(net, {.name = "a", .rank = 2, .targets = {"up"}}, 0);
  const Tensor handle = net.embed.weight, want = handle.detach().to(at::kDouble);
  const Tensor a = net.adapter("a")[0].tensor;
  net.to(at::kDouble);
  EXPECT_EQ(handle.scalar_type(), at::kDouble);
  EXPECT_TRUE(at::equal(handle.detach(), want));
  EXPECT_EQ(net.head.weight.unsafeGetTensorImpl(), handle.unsafeGetTensorImpl());
  EXPECT_EQ(net.mean.scalar_type(), at::kDouble);
  EXPECT_EQ(a.scalar_type(), at::kDouble);
  EXPECT_TRUE(handle.requires_grad() && handle.is_leaf());
  (net.head(at::ones({1, 4}, at::kDouble))).sum().backward();
  EXPECT_EQ(handle.grad().scalar_type(), at::kDouble);
}

TEST(Module, ScopesPutBack) {
  Net net;
  net.norm.weight.set_requires_grad(false);
  {
    const Frozen frozen(net);
    EXPECT_FALSE(net.embed.weight.requires_grad());
  }
  EXPECT_TRUE(net.embed.weight.requires_grad());
  EXPECT_FALSE(net.norm.weight.requires_grad());
  {
    const EvalMode eval(net);
    EXPECT_FALSE(net.blocks[1].down.training());
  }
  EXPECT_TRUE(net.blocks[1].down.training());
}

TEST(Module, TapsRecordInsideAScopeOnly) {
  const Tensor x = at::ones({2});
  EXPECT_EQ(tap("x", x).data_ptr(), x.data_ptr());
  const TapScope all;
  tap("x", x);
  {
    const TapScope one({"y"});
    tap("x", x);
    tap("y", x + 1);
    {
      const TapPause pause;
      tap("y", x);
    }
    EXPECT_EQ(one.values().size(), 1u);
    EXPECT_EQ(one.values().at("y").sum().item<double>(), 4.0);
  }
  tap("z", x);
  EXPECT_EQ(all.values().size(), 2u);
}

}  // namespace
}  // namespace fewstep::nn
