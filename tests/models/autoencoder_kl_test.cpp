// AutoencoderKL: size of SDXL's, shapes, the posterior against closed forms, scaling, recompute, taps.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/models/autoencoder_kl.h"
#include "src/models/model.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "tests/support/message_of.h"
#include "tests/support/scratch.h"

namespace fewstep {
namespace {

using models::AutoencoderKL;
using models::AutoencoderKlConfig;
using ::testing::HasSubstr;

AutoencoderKlConfig small_kl() {
  AutoencoderKlConfig c;
  c.in_channels = c.out_channels = 1;
  c.block_out_channels = {8, 16}, c.norm_num_groups = 4, c.latent_channels = 3, c.sample_size = 16;
  return c;
}

double gap(const Tensor& a, const Tensor& b) { return (a - b).abs().max().item<double>(); }

// The released SDXL VAE (and SD's): 83,653,863 parameters in 248 tensors.
TEST(AutoencoderKL, SdxlHasItsParameters) {
  AutoencoderKlConfig c;
  c.block_out_channels = {128, 256, 512, 512}, c.layers_per_block = 2, c.latent_channels = 4, c.sample_size = 1024;
  const nn::BuildScope meta(at::kMeta);
  const AutoencoderKL model(c);
  EXPECT_EQ(model.parameter_count(), 83653863);
  EXPECT_EQ(model.parameters().size(), 248u);
  EXPECT_EQ(c.factor(), 8);
  std::map<std::string, std::vector<int64_t>> shapes;
  for (const auto& [name, t] : model.parameters()) shapes[name] = t.sizes().vec();
  EXPECT_EQ(shapes.at("encoder.mid_block.attentions.0.to_q.weight"), (std::vector<int64_t>{512, 512}));
  EXPECT_EQ(shapes.at("encoder.mid_block.attentions.0.to_out.0.bias"), (std::vector<int64_t>{512}));
  EXPECT_EQ(shapes.at("encoder.mid_block.attentions.0.group_norm.weight"), (std::vector<int64_t>{512}));
  EXPECT_EQ(shapes.at("encoder.down_blocks.0.downsamplers.0.conv.weight"), (std::vector<int64_t>{128, 128, 3, 3}));
  EXPECT_EQ(shapes.at("decoder.up_blocks.2.upsamplers.0.conv.weight"), (std::vector<int64_t>{256, 256, 3, 3}));
  EXPECT_EQ(shapes.at("decoder.up_blocks.3.resnets.0.conv_shortcut.weight"), (std::vector<int64_t>{128, 256, 1, 1}));
  EXPECT_EQ(shapes.at("quant_conv.weight"), (std::vector<int64_t>{8, 8, 1, 1}));
  EXPECT_EQ(shapes.at("post_quant_conv.weight"), (std::vector<int64_t>{4, 4, 1, 1}));
}

TEST(AutoencoderKL, ShapesFollowFactorAndPatch) {
  for (const int64_t patch : {1, 2})
    for (const bool convs : {true, false}) {
      auto c = small_kl();
      c.patch_size = patch, c.use_quant_conv = c.use_post_quant_conv = convs;
      AutoencoderKL model(c);
      model.initialise(1);
      const NoGrad no_grad;
      const Tensor images = at::rand({2, 1, 16, 24}) * 2 - 1;
      const auto posterior = model.encode(images);
      EXPECT_EQ(posterior.mean.sizes(), (std::vector<int64_t>{2, 3, 16 / c.factor(), 24 / c.factor()}));
      EXPECT_EQ(posterior.logvar.sizes(), posterior.mean.sizes());
      EXPECT_EQ(model.decode(posterior.mean).sizes(), images.sizes());
      EXPECT_THAT(message_of([&] { model.encode(at::zeros({1, 1, 15, 16})); }), HasSubstr("multiples of"));
      EXPECT_THAT(message_of([&] { model.encode(at::zeros({1, 3, 16, 16})); }), HasSubstr("expected 1 channels"));
      EXPECT_THAT(message_of([&] { model.decode(at::zeros({1, 4, 8, 8})); }), HasSubstr("latents of AutoencoderKL"));
    }
}

// KL of N(m, s^2) to N(0, 1) = (m^2 + s^2 - 1 - ln s^2) / 2, here by numerical integration of q ln(q / p).
TEST(Posterior, KlIsThatOfTheDefinition) {
  const double m = 0.7, s = 0.4;
  const models::Posterior q{.mean = at::full({1, 1, 1, 2}, m, at::kDouble), .logvar = at::full({1, 1, 1, 2}, 2 * std::log(s), at::kDouble)};
  const Tensor x = at::linspace(m - 12 * s, m + 12 * s, 20001, at::kDouble);
  const Tensor log_q = -0.5 * ((x - m) / s).square() - std::log(s), log_p = -0.5 * x.square();
  const double step = 24 * s / 20000, integral = (log_q.exp() * (log_q - log_p)).sum().item<double>() * step / std::sqrt(2 * M_PI);
  EXPECT_NEAR(q.kl().item<double>(), 2 * integral, 1e-9);
  EXPECT_LT(gap(q.std(), at::full({1, 1, 1, 2}, s, at::kDouble)), 1e-15);
  EXPECT_LT(gap(q.sample(at::full({1, 1, 1, 2}, -2.0, at::kDouble)), at::full({1, 1, 1, 2}, m - 2 * s, at::kDouble)), 1e-15);
}

TEST(Posterior, LogvarIsClamped) {
  AutoencoderKL model(small_kl());
  model.initialise(1);
  const NoGrad no_grad;
  for (auto& [name, t] : model.parameters())
    if (name == "quant_conv.weight") t.zero_();
    else if (name == "quant_conv.bias") t.copy_(at::tensor({1.0, 2.0, 3.0, -100.0, 100.0, 0.5}));
  const auto q = model.encode(at::zeros({1, 1, 16, 16}));
  EXPECT_EQ(q.logvar.select(1, 0).max().item<double>(), -30.0);
  EXPECT_EQ(q.logvar.select(1, 1).min().item<double>(), 20.0);
  EXPECT_EQ(q.mean.select(1, 2).min().item<double>(), 3.0);
}

TEST(AutoencoderKL, ScalesByFactorShiftAndChannelStatistics) {
  auto c = small_kl();
  c.scaling_factor = 0.5, c.shift_factor = 1.0;
  const Tensor z = at::tensor({1.0, 3.0, -5.0}, at::kDouble).view({1, 3, 1, 1});
  EXPECT_LT(gap(AutoencoderKL(c).scale(z), at::tensor({0.0, 1.0, -3.0}, at::kDouble).view({1, 3, 1, 1})), 1e-15);
  EXPECT_LT(gap(AutoencoderKL(c).unscale(AutoencoderKL(c).scale(z)), z), 1e-15);
  c.latents_mean = {1.0, 1.0, 0.0}, c.latents_std = {2.0, 4.0, 0.5};
  EXPECT_LT(gap(AutoencoderKL(c).scale(z), at::tensor({0.0, 0.25, -5.0}, at::kDouble).view({1, 3, 1, 1})), 1e-15);
  EXPECT_LT(gap(AutoencoderKL(c).unscale(AutoencoderKL(c).scale(z)), z), 1e-15);
}

TEST(AutoencoderKL, RecomputeGivesTheSameValuesAndGradients) {
  AutoencoderKL model(small_kl());
  model.initialise(4);
  at::manual_seed(2);
  const Tensor images = at::rand({2, 1, 16, 16}) * 2 - 1, noise = at::randn({2, 3, 8, 8});
  const auto run = [&] {
    const auto q = model.encode(images);
    const Tensor loss = model.decode(q.sample(noise)).square().mean() + q.kl().mean();
    std::vector<Tensor> inputs;
    for (const auto& p : model.parameters()) inputs.push_back(p.tensor);
    for (Tensor& p : inputs) p.mutable_grad() = Tensor();
    loss.backward();
    std::vector<Tensor> out{loss.detach()};
    for (const Tensor& p : inputs) out.push_back(p.grad().clone());
    return out;
  };
  const auto plain = run();
  model.set_recompute(true);
  const auto again = run();
  for (size_t i = 0; i < plain.size(); ++i) EXPECT_TRUE(plain[i].equal(again[i])) << i;
}

TEST(AutoencoderKL, ResidualBlocksAreTapped) {
  AutoencoderKL model(small_kl());
  model.initialise(4);
  const NoGrad no_grad;
  const nn::TapScope scope;
  model.decode(at::randn({1, 3, 8, 8}));
  EXPECT_TRUE(scope.values().contains("decoder.mid_block.resnets.1.conv1"));
  EXPECT_TRUE(scope.values().contains("decoder.up_blocks.1.resnets.0.out"));
  EXPECT_EQ(scope.values().size(), 3u * (2 + 2 + 2));  // middle, two stages of two blocks
}

TEST(AutoencoderKlConfig, SurvivesJsonAndRefusesWhatItCannotDo) {
  auto c = small_kl();
  c.latents_mean = {1, 2, 3}, c.latents_std = {1, 2, 3}, c.shift_factor = 0.5, c.patch_size = 2, c.use_quant_conv = false;
  const Json json = c.to_json();
  EXPECT_EQ(AutoencoderKlConfig::from_json(json, "c").to_json(), json);
  const auto refused = [&](const char* key, const Json& value) {
    Json changed = json;
    changed[key] = value;
    return message_of([&] { AutoencoderKlConfig::from_json(changed, "vae/config.json"); });
  };
  EXPECT_THAT(refused("act_fn", "mish"), HasSubstr("vae/config.json: act_fn 'mish'"));
  EXPECT_THAT(refused("up_block_types", {"AttnUpDecoderBlock2D"}), HasSubstr("AttnUpDecoderBlock2D"));
  EXPECT_THAT(refused("latents_std", Json::array({1, 2})), HasSubstr("latents_std has 2 values, latent_channels is 3"));
  EXPECT_THAT(refused("latents_std", nullptr), HasSubstr("give both or none"));
  EXPECT_THAT(refused("latents_std", Json::array({1, 0, 1})), HasSubstr("positive"));
  EXPECT_THAT(refused("scaling_factor", 0), HasSubstr("scaling_factor"));
  EXPECT_THAT(refused("norm_num_groups", 3), HasSubstr("multiple of norm_num_groups 3"));
}

TEST(AutoencoderKL, SavesAndLoads) {
  const testing::ScratchFolder folder("kl");
  AutoencoderKL model(small_kl());
  model.initialise(11);
  models::save_model(folder.path(), model, model.config().to_json());
  const auto loaded = models::load_model(folder.path());
  ASSERT_NE(dynamic_cast<AutoencoderKL*>(loaded.get()), nullptr);
  const auto a = model.state(), b = loaded->state();
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(a[i].tensor.equal(b[i].tensor)) << a[i].name;
}

}  // namespace
}  // namespace fewstep
