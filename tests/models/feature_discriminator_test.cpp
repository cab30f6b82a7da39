#include "src/models/feature_discriminator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/models/conv_encoder.h"
#include "src/models/dinov2.h"
#include "src/nn/gradients.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"

namespace fewstep::models {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

Tensor discriminator_noise(at::IntArrayRef shape, int64_t id) {
  at::Generator g = generator_for(5, Stream::noise, 0, id);
  return at::empty(shape, at::kFloat).normal_(0, 1, g);
}

double discriminator_gap(const Tensor& a, const Tensor& b) { return (a - b).abs().max().item<double>(); }

FeatureDiscriminatorConfig small_discriminator() {
  FeatureDiscriminatorConfig c;
  c.channels = {6, 8}, c.text_width = 5, c.projection_width = 4;
  return c;
}

// BatchNormLocal on one run of 2 samples at a time, written out.
TEST(FeatureDiscriminator, LocalBatchNormIsThatOfEveryGroup) {
  BatchNormLocal norm(3);
  norm.initialise(0);
  const Tensor x = discriminator_noise({4, 3, 5}, 1);
  const Tensor got = norm(x, virtual_batches(at::arange(4, at::kLong), 2));
  for (int64_t first : {0, 2}) {
    const Tensor part = x.narrow(0, first, 2), mean = part.mean({0, 2}, true), variance = (part - mean).square().mean({0, 2}, true);
    EXPECT_LT(discriminator_gap(got.narrow(0, first, 2), (part - mean) / (variance + 1e-5).sqrt()), 1e-5);
  }
}

TEST(FeatureDiscriminator, VirtualBatchesFollowTheIds) {
  EXPECT_TRUE(at::equal(virtual_batches(at::tensor({30, 10, 20, 0}, at::kLong), 2), at::tensor({1, 0, 1, 0}, at::kLong)));
  EXPECT_EQ(virtual_batches(at::arange(12, at::kLong), 8).eq(0).sum().item<int64_t>(), 6);  // 12 in two runs of 6, as view(2, -1)
}

// Shuffled rows with their ids, and the two halves that two ranks would hold, equal one call.
TEST(FeatureDiscriminator, TwoRanksAndAnyOrderEqualOneCall) {
  FeatureDiscriminatorConfig c = small_discriminator();
  c.virtual_batch = 2;
  FeatureDiscriminator model(c);
  model.initialise(1);
  model.train(false);
  const std::vector<Tensor> taps = {discriminator_noise({4, 6, 9}, 1), discriminator_noise({4, 8, 6}, 2)};
  const Tensor text = discriminator_noise({4, 5}, 3), ids = at::tensor({3, 5, 8, 9}, at::kLong);
  const Tensor whole = model(taps, text, ids);
  EXPECT_EQ(whole.sizes(), at::IntArrayRef({4, 15}));
  const Tensor order = at::tensor({2, 0, 3, 1}, at::kLong);
  const auto rows = [&](const Tensor& index) {
    return model({taps[0].index_select(0, index), taps[1].index_select(0, index)}, text.index_select(0, index), ids.index_select(0, index));
  };
  EXPECT_LT(discriminator_gap(rows(order), whole.index_select(0, order)), 1e-5);
  for (int64_t first : {0, 2}) EXPECT_LT(discriminator_gap(rows(at::arange(first, first + 2, at::kLong)), whole.narrow(0, first, 2)), 1e-5);
  c.virtual_batch = 4;
  FeatureDiscriminator wide(c);
  wide.initialise(1);
  wide.train(false);
  EXPECT_GT(discriminator_gap(wide(taps, text, ids), whole), 1e-3);  // the grouping does matter
}

TEST(FeatureDiscriminator, GroupNormAndNoneSeeOneSampleAtATime) {
  for (const char* norm : {"group", "none"}) {
    FeatureDiscriminatorConfig c = small_discriminator();
    c.norm = norm, c.norm_groups = 2;
    FeatureDiscriminator model(c);
    model.initialise(1);
    model.train(false);
    const std::vector<Tensor> taps = {discriminator_noise({3, 6, 9}, 1), discriminator_noise({3, 8, 6}, 2)};
    const Tensor text = discriminator_noise({3, 5}, 3);
    const Tensor one = model({taps[0].narrow(0, 1, 1), taps[1].narrow(0, 1, 1)}, text.narrow(0, 1, 1));
    EXPECT_LT(discriminator_gap(model(taps, text).narrow(0, 1, 1), one), 1e-5) << norm;
  }
}

TEST(FeatureDiscriminator, ConfigErrorsAreNamed) {
  FeatureDiscriminatorConfig c = small_discriminator();
  EXPECT_EQ(FeatureDiscriminatorConfig::from_json(c.to_json(), "x").to_json(), c.to_json());
  c.norm = "batch";
  EXPECT_THAT([&] { c.validate("d"); }, ThrowsMessage<ConfigError>(HasSubstr("norm")));
  c.norm = "group", c.norm_groups = 4;
  EXPECT_THAT([&] { c.validate("d"); }, ThrowsMessage<ConfigError>(HasSubstr("6 channels")));
  FeatureDiscriminator model(small_discriminator());
  EXPECT_THAT([&] { model({at::ones({1, 6, 9})}); }, ThrowsMessage<Error>(HasSubstr("1 feature maps for 2 heads")));
}

Dinov2Config small_backbone() {
  Dinov2Config c;
  c.hidden_size = 8, c.num_hidden_layers = 2, c.num_attention_heads = 2, c.mlp_ratio = 2, c.image_size = 28, c.patch_size = 7;
  return c;
}

// Taps against the network run by hand, on an image that is already 28 x 28: normalisation and readout written out.
TEST(FeatureTaps, TokensPlusClassToken) {
  Dinov2Model network(small_backbone());
  network.initialise(4);
  const Tensor images = discriminator_noise({2, 3, 28, 28}, 7).clamp(-1, 1);
  const std::vector<Tensor> taps = feature_taps(network, images, {.blocks = {2, 0}});
  const Tensor mean = at::tensor({0.485, 0.456, 0.406}, at::kFloat).view({1, 3, 1, 1}),
               deviation = at::tensor({0.229, 0.224, 0.225}, at::kFloat).view({1, 3, 1, 1});
  const Dinov2Output out = network((images * 0.5 + 0.5 - mean) / deviation);
  ASSERT_EQ(taps.size(), 2u);
  EXPECT_EQ(taps[0].sizes(), at::IntArrayRef({2, 8, 16}));
  for (const auto& [tap, state] : {std::pair(taps[0], out.hidden_states[2]), std::pair(taps[1], out.hidden_states[0])})
    EXPECT_LT(discriminator_gap(tap.select(2, 5), state.select(1, 6) + state.select(1, 0)), 1e-5);
}

TEST(FeatureTaps, GradientsReachTheImagesAndNotTheNetwork) {
  Dinov2Model network(small_backbone());
  network.initialise(4);
  network.requires_grad(true);
  Tensor images = discriminator_noise({1, 1, 33, 40}, 8).requires_grad_(true);  // grey, resized to 35 x 42
  const std::vector<Tensor> taps = feature_taps(network, images, {.blocks = {1}});
  EXPECT_EQ(taps[0].sizes(), at::IntArrayRef({1, 8, 30}));
  taps[0].square().sum().backward();
  EXPECT_GT(images.grad().abs().min().item<double>(), 0.0);
  for (const NamedTensor& p : network.parameters()) {
    EXPECT_FALSE(p.tensor.grad().defined()) << p.name;
    EXPECT_TRUE(p.tensor.requires_grad()) << p.name;
  }
  EXPECT_TRUE(network.training());
  EXPECT_EQ(feature_taps(network, images, {.blocks = {1}, .side = 14})[0].size(2), 2 * 2);
  EXPECT_THAT([&] { feature_taps(network, images, {.blocks = {3}}); }, ThrowsMessage<ConfigError>(HasSubstr("block 3")));
}

TEST(FeatureTaps, StagesOfAConvEncoderAndADiscriminatorOnThem) {
  ConvEncoder network{ConvEncoderConfig{}};
  network.initialise(2);
  const FeatureTapOptions options{.blocks = {1, 2}};
  Tensor images = discriminator_noise({2, 1, 32, 32}, 9).requires_grad_(true);
  const std::vector<Tensor> taps = feature_taps(network, images, options);
  FeatureDiscriminatorConfig c;
  c.channels = tap_channels(network, options);
  EXPECT_EQ(c.channels, (std::vector<int64_t>{32, 64}));
  FeatureDiscriminator model(c);
  model.initialise(3);
  const Tensor logits = model(taps);
  EXPECT_EQ(logits.sizes(), at::IntArrayRef({2, 16 * 16 + 8 * 8}));
  EXPECT_GT(nn::gradients(logits.square().mean(), {images}, false).front().abs().max().item<double>(), 0.0);
}

}  // namespace
}  // namespace fewstep::models
