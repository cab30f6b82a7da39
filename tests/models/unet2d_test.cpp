// UNet2DConditionModel: sizes of SDXL's, config.json, conditions, embeddings, initial values, recompute.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/config/config.h"
#include "src/models/label_embedding.h"
#include "src/models/model.h"
#include "src/models/unet2d.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "tests/support/message_of.h"
#include "tests/support/scratch.h"

namespace fewstep {
namespace {

using models::UNet2DConditionModel;
using models::UNet2DConfig;
using models::UNetConditions;
using ::testing::HasSubstr;

UNet2DConfig small_unet() {
  UNet2DConfig c;
  c.block_out_channels = {8, 16}, c.norm_num_groups = 4, c.layers_per_block = {1};
  c.down_block_types = {"DownBlock2D", "CrossAttnDownBlock2D"}, c.up_block_types = {"CrossAttnUpBlock2D", "UpBlock2D"};
  c.transformer_layers_per_block = {1, 2}, c.attention_head_dim = {1, 2}, c.cross_attention_dim = 6, c.use_linear_projection = true;
  c.addition_embed_type = "text_time", c.addition_time_embed_dim = 4, c.projection_class_embeddings_input_dim = 5 + 6 * 4;
  return c;
}

// Random everywhere: a fresh network's output is zero.
std::unique_ptr<UNet2DConditionModel> make_unet(const UNet2DConfig& c) {
  auto model = std::make_unique<UNet2DConditionModel>(c);
  at::Generator generator = at::detail::createCPUGenerator(7);
  const NoGrad no_grad;
  for (auto& [name, t] : model->parameters())
    t.normal_(t.dim() == 1 && name.ends_with("weight") ? 1.0 : 0.0, t.dim() == 1 ? 0.1 : 1.0 / std::sqrt(static_cast<double>(t[0].numel())), generator);
  return model;
}

struct UnetInputs {
  Tensor sample, t;
  UNetConditions conditions;
};

UnetInputs some_inputs(const UNet2DConfig& c, int64_t batch, int64_t height, int64_t width) {
  at::Generator g = at::detail::createCPUGenerator(3);
  const auto normal = [&](at::IntArrayRef shape) { return at::empty(shape).normal_(0, 1, g); };
  UnetInputs in{.sample = normal({batch, c.in_channels, height, width}), .t = at::arange(batch) * 311 + 5, .conditions = {}};
  if (c.has_cross_attention()) in.conditions.context = normal({batch, 3, c.cross_attention_dim});
  if (c.has_additions()) {
    in.conditions.pooled = normal({batch, 5});
    in.conditions.numbers = (at::arange(batch * 6) * 97 % 1024).view({batch, 6}).to(at::kFloat);
  }
  return in;
}

double unet_gap(const Tensor& a, const Tensor& b) { return (a - b).abs().max().item<double>(); }

// --- sizes

TEST(UNet2D, SdxlHasItsParameters) {
  const nn::BuildScope meta(at::kMeta);
  const std::tuple<UNet2DConfig, int64_t, size_t> released[] = {{models::sdxl_base_config(), 2567463684, 1680}, {models::sdxl_refiner_config(), 2259526660, 1220}};
  for (const auto& [config, parameters, tensors] : released) {
    const UNet2DConditionModel model(config);
    EXPECT_EQ(model.parameter_count(), parameters);
    EXPECT_EQ(model.parameters().size(), tensors);
    for (const auto& [name, t] : model.parameters()) ASSERT_TRUE(t.is_meta()) << name;
  }
}

TEST(UNet2D, ParametersComeInTheOrderOfDiffusers) {
  const nn::BuildScope meta(at::kMeta);
  const UNet2DConditionModel model(small_unet());
  std::vector<std::string> heads;
  for (const auto& [name, t] : model.parameters())
    if (const std::string head = name.substr(0, name.find('.')); heads.empty() || heads.back() != head) heads.push_back(head);
  EXPECT_THAT(heads, ::testing::ElementsAre("conv_in", "time_embedding", "add_embedding", "down_blocks", "up_blocks", "mid_block", "conv_norm_out", "conv_out"));
}

// Counted by torch.utils.flop_counter on diffusers' networks.
TEST(UNet2D, FlopsAreThoseOfPyTorchsCounter) {
  const nn::BuildScope meta(at::kMeta);
  EXPECT_DOUBLE_EQ(UNet2DConditionModel(models::sdxl_base_config()).forward_flops(128, 128, 77), 6761236398080.0);
  EXPECT_DOUBLE_EQ(UNet2DConditionModel(models::sdxl_refiner_config()).forward_flops(128, 128, 77), 7286010937344.0);
  UNet2DConfig sd15;
  sd15.cross_attention_dim = 768;
  const UNet2DConditionModel model(sd15);
  EXPECT_EQ(model.parameter_count(), 859520964);
  EXPECT_DOUBLE_EQ(model.forward_flops(64, 64, 77), 803273441280.0);
}

TEST(UNet2D, TakesAnySize) {
  const NoGrad no_grad;
  const auto c = small_unet();
  const auto model = make_unet(c);
  for (const auto& [h, w] : {std::pair(8, 8), std::pair(7, 5), std::pair(1, 3)}) {
    const auto in = some_inputs(c, 2, h, w);
    EXPECT_EQ((*model)(in.sample, in.t, in.conditions).sizes(), in.sample.sizes()) << h << " x " << w;
  }
}

TEST(UNet2D, RowsDoNotSeeEachOther) {
  const NoGrad no_grad;
  const auto c = small_unet();
  const auto model = make_unet(c);
  const auto in = some_inputs(c, 3, 8, 6);
  const Tensor together = (*model)(in.sample, in.t, in.conditions);
  for (int64_t row = 0; row < 3; ++row) {
    const auto one = [row](const Tensor& t) { return t.narrow(0, row, 1); };
    const UNetConditions k{.context = one(in.conditions.context), .pooled = one(in.conditions.pooled), .numbers = one(in.conditions.numbers), .number_mask = {}};
    EXPECT_LT(unet_gap((*model)(one(in.sample), one(in.t), k), one(together)), 1e-4);
    EXPECT_LT(unet_gap((*model)(one(in.sample), one(in.t).squeeze(0).to(at::kDouble), k), one(together)), 1e-4) << "one real number for all rows";
  }
}

// --- config.json

TEST(UNet2DConfigTest, RoundTripsThroughJson) {
  for (auto c : {small_unet(), models::sdxl_base_config(), models::sdxl_refiner_config(), UNet2DConfig{}}) {
    const Json json = c.to_json();
    EXPECT_EQ(UNet2DConfig::from_json(json, "config.json").to_json(), json);
    c.mid_block_type = "", c.addition_embed_type = "";
    const Json without = c.to_json();
    EXPECT_TRUE(without["mid_block_type"].is_null() && without["addition_embed_type"].is_null());
    EXPECT_EQ(UNet2DConfig::from_json(without, "config.json").to_json(), without);
  }
  EXPECT_EQ(small_unet().factor(), 2);
}

TEST(UNet2DConfigTest, RefusesOtherNetworksByName) {
  const std::pair<const char*, Json> cases[] = {{"class_embed_type", "projection"}, {"encoder_hid_dim", 4096}, {"dual_cross_attention", true},
      {"time_cond_proj_dim", 256}, {"act_fn", "gelu"}, {"norm_num_groups", nullptr}, {"only_cross_attention", {false, true}},
      {"mid_block_type", "UNetMidBlock2DSimpleCrossAttn"}, {"down_block_types", {"DownBlock2D", "AttnDownBlock2D"}},
      {"cross_attention_dim", {6, 7}}, {"transformer_layers_per_block", {1, 2, 3}}, {"attention_head_dim", 3},
      {"block_out_channels", {8, 18}}, {"addition_embed_type", "image"}, {"conv_in_kernel", 2}, {"resnet_time_scale_shift", "ada_group"}};
  for (const auto& [key, value] : cases) {
    Json json = small_unet().to_json();
    json[key] = value;
    EXPECT_THAT(message_of<ConfigError>([&] { UNet2DConfig::from_json(json, "unet/config.json"); }), ::testing::AllOf(HasSubstr("unet/config.json"), HasSubstr(key)))
        << key;
  }
  Json alike = small_unet().to_json();
  alike["only_cross_attention"] = {false, false}, alike["cross_attention_dim"] = {6, 6}, alike["dropout"] = 0.0, alike["upcast_attention"] = nullptr;
  EXPECT_EQ(UNet2DConfig::from_json(alike, "config.json").to_json(), small_unet().to_json());
}

struct UnetRoot {
  UNet2DConfig model = small_unet();
};
void describe(config::Visitor& v, UnetRoot& r) { v.field("model", r.model, "the network"); }

TEST(UNet2DConfigTest, YamlErrorsNameTheKey) {
  auto read = config::parse<UnetRoot>("model: {block_out_channels: [12, 24], attention_head_dim: [3]}");
  EXPECT_EQ(read.model.heads(1), 3);
  for (const char* yaml : {"model: {block_out_channels: []}", "model: {block_out_channels: [8, 18]}", "model: {block_out_channels: [8, 16, 16]}",
                           "model: {attention_head_dim: [3]}", "model: {down_block_types: [DownBlock2D, Down]}", "model: {mid_block_type: Mid}"})
    EXPECT_THAT(message_of<ConfigError>([&] { config::parse<UnetRoot>(yaml); }), HasSubstr("<string>:1")) << yaml;
}

// --- conditions

TEST(UNet2D, SaysWhatIsWrongWithItsConditions) {
  const auto c = small_unet();
  const auto model = make_unet(c);
  const auto in = some_inputs(c, 2, 4, 4);
  const auto message = [&](auto change) {
    UnetInputs wrong = in;
    change(wrong);
    return message_of([&] { (*model)(wrong.sample, wrong.t, wrong.conditions); });
  };
  EXPECT_THAT(message([](UnetInputs& w) { w.conditions.context = Tensor(); }), HasSubstr("context"));
  EXPECT_THAT(message([](UnetInputs& w) { w.conditions.context = at::zeros({1, 3, 6}); }), HasSubstr("[2, -1, 6]"));
  EXPECT_THAT(message([](UnetInputs& w) { w.conditions.numbers = w.conditions.numbers.narrow(1, 0, 5); }), HasSubstr("projection_class_embeddings_input_dim is 29"));
  EXPECT_THAT(message([](UnetInputs& w) { w.conditions.pooled = Tensor(); }), HasSubstr("29"));
  EXPECT_THAT(message([](UnetInputs& w) { w.conditions.number_mask = at::ones({2, 5}); }), HasSubstr("number_mask"));
  EXPECT_THAT(message([](UnetInputs& w) { w.sample = at::zeros({2, 3, 4, 4}); }), HasSubstr("sample"));
  EXPECT_THAT(message([](UnetInputs& w) { w.t = at::zeros({3}); }), HasSubstr("3 timesteps for 2 samples"));
  auto plain = c;
  plain.addition_embed_type = "", plain.mid_block_type = "UNetMidBlock2D";
  plain.down_block_types = {"DownBlock2D", "DownBlock2D"}, plain.up_block_types = {"UpBlock2D", "UpBlock2D"};
  const auto unconditional = make_unet(plain);
  EXPECT_THAT(message_of([&] { (*unconditional)(in.sample, in.t, {.context = in.conditions.context, .pooled = {}, .numbers = {}, .number_mask = {}}); }),
              HasSubstr("cross attention"));
  EXPECT_THAT(message_of([&] { (*unconditional)(in.sample, in.t, {.context = {}, .pooled = {}, .numbers = in.conditions.numbers, .number_mask = {}}); }),
              HasSubstr("addition_embed_type"));
  EXPECT_EQ((*unconditional)(in.sample, in.t, {}).sizes(), in.sample.sizes());
}

// [cos | sin] of value * 10000^(-i / half); an integer that bfloat16 would round keeps its place.
TEST(UNet2D, SinusoidsAreFloat32AsInThePaper) {
  const Tensor values = at::tensor({0.0, 1.0, 257.0, 1023.0, 1025.0}, at::kFloat), waves = models::sinusoids(values, 256, true, 0);
  ASSERT_EQ(waves.sizes(), (std::vector<int64_t>{5, 256}));
  for (int64_t row = 0; row < 5; ++row)
    for (const int64_t i : {0, 1, 50, 127}) {
      const double angle = values[row].item<double>() * std::exp(-std::log(10000.0) * static_cast<double>(i) / 128.0);
      EXPECT_NEAR(waves[row][i].item<double>(), std::cos(angle), 2e-4);
      EXPECT_NEAR(waves[row][128 + i].item<double>(), std::sin(angle), 2e-4);
    }
  EXPECT_TRUE(waves[0].narrow(0, 0, 128).eq(1).all().item<bool>()) << "the sinusoid of 0 is ones and zeros, not the zero vector";
  EXPECT_TRUE(models::sinusoids(values.to(at::kLong), 256, true, 0).equal(waves));
  EXPECT_GT(unet_gap(waves[3], waves[4]), 0.5);  // both are 1024 in bfloat16
  EXPECT_TRUE(models::sinusoids(values, 6, false, 1).narrow(1, 0, 3).equal(models::sinusoids(values, 6, true, 1).narrow(1, 3, 3)));
  EXPECT_EQ(models::sinusoids(values, 5, true, 0).size(1), 5);
}

TEST(UNet2D, EmbedsNumbersInFloat32WhateverTheWeights) {
  const NoGrad no_grad;
  auto c = small_unet();
  c.addition_time_embed_dim = 64, c.projection_class_embeddings_input_dim = 64;
  const auto model = make_unet(c);
  model->to(at::kBFloat16);
  const auto additions = [&](double number) {
    const nn::TapScope taps({"add_emb"});
    (*model)(at::zeros({1, 4, 4, 4}, at::kBFloat16), at::zeros({1}), {.context = at::zeros({1, 1, 6}), .pooled = {}, .numbers = at::full({1, 1}, number), .number_mask = {}});
    return taps.values().at("add_emb").clone();
  };
  EXPECT_GT(unet_gap(additions(1023), additions(1025)), 0.05);
}

TEST(UNet2D, MaskedNumbersAreZeroVectorsAndNoPooledIsWidthZero) {
  const NoGrad no_grad;
  auto c = small_unet();
  c.projection_class_embeddings_input_dim = 6 * 4;
  const auto model = make_unet(c);
  auto in = some_inputs(c, 2, 4, 4);
  in.conditions.pooled = Tensor();
  const auto additions = [&](const UNetConditions& k) {
    const nn::TapScope taps({"add_emb"});
    (*model)(in.sample, in.t, k);
    return taps.values().at("add_emb").clone();
  };
  const Tensor plain = additions(in.conditions);
  UNetConditions k = in.conditions;
  k.pooled = at::zeros({2, 0});
  EXPECT_TRUE(additions(k).equal(plain));
  k.number_mask = at::ones({2, 6});
  EXPECT_TRUE(additions(k).equal(plain));
  k.number_mask[1] = 0;
  const Tensor masked = additions(k);
  EXPECT_TRUE(masked[0].equal(plain[0]));
  TensorMap weights;
  for (const auto& [name, t] : model->parameters()) weights[name] = t;
  const Tensor of_nothing = at::linear(at::silu(weights.at("add_embedding.linear_1.bias")), weights.at("add_embedding.linear_2.weight"), weights.at("add_embedding.linear_2.bias"));
  EXPECT_LT(unet_gap(masked[1], of_nothing), 1e-6);
}

// --- training

TEST(UNet2D, AFreshNetworkPredictsZeroAndItsBranchesAreClosed) {
  const auto c = small_unet();
  UNet2DConditionModel model(c);
  model.initialise(1);
  for (const auto& [name, t] : model.parameters()) {
    const bool closed = name.find("conv2.") != std::string::npos || name.find("proj_out.") != std::string::npos || name.starts_with("conv_out.");
    const bool zeros = closed || (name.find("norm") != std::string::npos && name.ends_with("bias"));
    EXPECT_EQ(t.eq(0).all().item<bool>(), zeros) << name;
  }
  const auto in = some_inputs(c, 2, 4, 4);
  const Tensor out = model(in.sample, in.t, in.conditions);
  EXPECT_TRUE(out.eq(0).all().item<bool>());
  at::mse_loss(out, at::ones_like(out)).backward();  // and training starts from there
  const NamedTensors parameters = model.parameters();
  const auto last = std::find_if(parameters.begin(), parameters.end(), [](const NamedTensor& p) { return p.name == "conv_out.weight"; });
  EXPECT_GT(last->tensor.grad().abs().max().item<double>(), 0.0);
}

TensorMap unet_gradients(UNet2DConditionModel& model, const UnetInputs& in, bool recompute) {
  model.set_recompute(recompute);
  UnetInputs own = in;
  own.sample = in.sample.detach().clone().requires_grad_(true);
  if (in.conditions.context.defined()) own.conditions.context = in.conditions.context.detach().clone().requires_grad_(true);
  const Tensor out = model(own.sample, own.t, own.conditions);
  at::mse_loss(out, at::ones_like(out)).backward();
  TensorMap grads{{"out", out.detach()}, {"sample", own.sample.grad()}};
  if (own.conditions.context.defined()) grads["context"] = own.conditions.context.grad();
  for (auto& [name, t] : model.parameters()) {
    EXPECT_TRUE(t.grad().defined()) << name;
    grads[name] = t.grad();
    t.mutable_grad() = Tensor();
  }
  return grads;
}

TEST(UNet2D, RecomputeGivesTheSameGradients) {
  auto deep = small_unet(), convolutional = small_unet();
  deep.transformer_layers_per_block = {1, 3}, deep.use_linear_projection = false, deep.resnet_time_scale_shift = "scale_shift";
  convolutional.down_block_types = {"DownBlock2D", "DownBlock2D"}, convolutional.up_block_types = {"UpBlock2D", "UpBlock2D"}, convolutional.mid_block_type = "";
  for (const auto& c : {small_unet(), deep, convolutional}) {
    const auto model = make_unet(c);
    const auto in = some_inputs(c, 2, 6, 7);
    const TensorMap plain = unet_gradients(*model, in, false), again = unet_gradients(*model, in, true);
    for (const auto& [name, t] : plain) EXPECT_LE(unet_gap(t, again.at(name)), 1e-6 + 1e-5 * t.abs().max().item<double>()) << name;
  }
}

// --- labels

TEST(LabelEmbeddingTest, IsAContextOfOneTokenAndANetworkOfTheTable) {
  models::LabelEmbedding labels({.num_classes = 5, .dim = 6});
  labels.initialise(2);
  const Tensor context = labels(at::tensor({4, 0, 4}, at::kLong));
  ASSERT_EQ(context.sizes(), (std::vector<int64_t>{3, 1, 6}));
  EXPECT_TRUE(context[0].equal(context[2]));
  EXPECT_FALSE(context[0].equal(context[1]));
  const testing::ScratchFolder scratch("label-embedding");
  models::save_model(scratch.path(), labels, labels.config().to_json());
  const auto loaded = models::load_model(scratch.path());
  EXPECT_TRUE(dynamic_cast<models::LabelEmbedding&>(*loaded)(at::tensor({4}, at::kLong)).equal(context.narrow(0, 0, 1)));
  EXPECT_THROW(models::LabelEmbedding({.num_classes = 0, .dim = 6}), ConfigError);
}

}  // namespace
}  // namespace fewstep
