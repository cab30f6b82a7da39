// Full and low-rank fine-tuning of a small module, and what PEFT would read of it.
#include "trainers/tuning.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/json.h"
#include "src/io/safetensors.h"
#include "src/nn/layers.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "tests/support/message_of.h"
#include "tests/support/scratch.h"

namespace fewstep {
namespace {
using ::testing::HasSubstr;

// to_q [4 -> 6], to_out.0 [6 -> 3], conv [3 -> 2, 3 x 3].
struct Small : nn::Module {
  nn::Linear to_q, out;
  nn::Conv2d conv;
  nn::ModuleList<nn::Linear> to_out;
  Small() : to_q(4, 6), out(3, 3), conv(3, 2, {.kernel = 3, .padding = 1}) {
    child("to_q", to_q), child("out", out), child("conv", conv), child("to_out", to_out);
    to_out.add(6, 3);
  }
  Tensor operator()(const Tensor& x) const {  // [B, 4] -> [B, 2, 1, 1]
    const Tensor h = out(to_out[0](to_q(x)));
    return conv(h.view({-1, 3, 1, 1}));
  }
};

TensorMap map_of(const NamedTensors& tensors) {
  TensorMap out;
  for (const auto& [name, tensor] : tensors) out.emplace(name, tensor.detach().clone());
  return out;
}

TEST(Tuning, FullTrainsEverythingAndSavesItAsItIs) {
  Small module;
  module.initialise(1);
  const Tuning tuning(module, {}, "fine", 3);
  EXPECT_EQ(tuning.parameters().size(), 8u);
  EXPECT_TRUE(tuning.active().empty());
  for (const auto& [name, tensor] : tuning.parameters()) EXPECT_TRUE(tensor.requires_grad()) << name;
  const testing::ScratchFolder folder("tuning");
  tuning.save_adapter(folder / "adapter", "start", "");
  EXPECT_FALSE(std::filesystem::exists(folder / "adapter"));
  EXPECT_EQ(count_elements(tuning.parameters()), module.parameter_count());
}

TEST(Tuning, AnAdapterIsMergedAndApartTheSameFunction) {
  Small module;
  module.initialise(1);
  const TensorMap start = map_of(module.state());
  const LoraConfig lora{.rank = 2, .alpha = 6, .targets = {"to_q", "to_out.0", "conv"}};
  const Tuning tuning(module, lora, "fine", 3);
  EXPECT_EQ(tuning.parameters().size(), 6u);  // two matrices a layer
  for (const auto& [name, tensor] : module.parameters()) EXPECT_FALSE(tensor.requires_grad()) << name;

  const Tensor x = at::linspace(-1, 1, 12).view({3, 4});
  const Tensor before = module(x).detach();
  {
    const NoGrad no_grad;
    for (const auto& [name, tensor] : tuning.parameters()) tensor.copy_(at::sin(at::arange(tensor.numel()).to(at::kFloat) + 1).view_as(tensor));
  }
  const nn::AdapterScope scope(tuning.active());
  const Tensor tuned = module(x).detach();
  EXPECT_GT((tuned - before).abs().max().item<double>(), 1e-2);

  // Merged: a plain network with these weights is the same function, without adapters.
  Small plain;
  plain.load(tuning.merged_state(), "merged");
  const nn::AdapterScope none({});
  EXPECT_LE((plain(x).detach() - tuned).abs().max().item<double>(), 1e-5);
  EXPECT_TRUE(module(x).detach().equal(before)) << "the module itself was changed";

  // Apart: W + alpha / r B A by the names PEFT gives.
  const testing::ScratchFolder folder("tuning");
  tuning.save_adapter(folder / "adapter", "runs/start", "");
  const Json config = read_json(folder / "adapter" / "adapter_config.json");
  EXPECT_EQ(config.at("r"), 2);
  EXPECT_EQ(config.at("lora_alpha"), 6.0);
  EXPECT_EQ(config.at("base_model_name_or_path"), "runs/start");
  const TensorMap apart = io::Safetensors(folder / "adapter" / "adapter_model.safetensors").all();
  EXPECT_EQ(apart.size(), 6u);
  const TensorMap merged = tuning.merged_state();
  for (const std::string layer : {"to_q", "to_out.0", "conv"}) {
    const Tensor a = apart.at("base_model.model." + layer + ".lora_A.weight"), b = apart.at("base_model.model." + layer + ".lora_B.weight");
    const Tensor w = start.at(layer + ".weight");
    const Tensor expected = w + 3.0 * at::mm(b.flatten(1), a.flatten(1)).view(w.sizes());
    EXPECT_LE((merged.at(layer + ".weight") - expected).abs().max().item<double>(), 1e-5) << layer;
  }
  EXPECT_TRUE(merged.at("out.weight").equal(start.at("out.weight")));
}

TEST(Tuning, WithoutTargetsEveryLayerIsOneAndPeftIsTold) {
  Small module;
  module.initialise(1);
  const Tuning tuning(module, {.rank = 1, .targets = {}}, "fine", 3);
  EXPECT_EQ(tuning.parameters().size(), 8u);
  const testing::ScratchFolder folder("tuning");
  tuning.save_adapter(folder / "adapter", "x", "CAUSAL_LM");
  const Json config = read_json(folder / "adapter" / "adapter_config.json");
  EXPECT_EQ(config.at("target_modules"), Json({"conv", "out", "to_out.0", "to_q"}));  // not "0", which would be every list's first
  EXPECT_EQ(config.at("task_type"), "CAUSAL_LM");
}

TEST(Tuning, TargetsThatAreNowhereAreNamed) {
  Small module;
  EXPECT_THAT(message_of<ConfigError>([&] { Tuning(module, {.rank = 1, .targets = {"to_k"}}, "fine", 3); }), HasSubstr("to_k"));
}

}  // namespace
}  // namespace fewstep
