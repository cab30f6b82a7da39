// The terms of the trainer `autoencoder` against closed forms and plain loops; latent statistics; perceptual networks.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "datasets/fashion_mnist.h"
#include "datasets/loader.h"
#include "src/base/error.h"
#include "src/nn/layers.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "tests/support/message_of.h"
#include "trainers/autoencoder.h"

namespace fewstep {
namespace {

constexpr auto kDoubles = at::kDouble;

TEST(LaplaceNll, IsTheSumOverPixelsWithTheImageTermOnEachPixel) {
  at::manual_seed(1);
  const Tensor x = at::randn({2, 3, 4, 5}, kDoubles), y = at::randn({2, 3, 4, 5}, kDoubles);
  const Tensor logvar = at::full({1}, 0.3, kDoubles), distance = at::tensor({0.7, 1.1}, kDoubles);
  double expected = 0;
  for (int64_t b = 0; b < 2; ++b)
    for (int64_t i = 0; i < 60; ++i) {
      const double l1 = std::abs((x[b].flatten()[i] - y[b].flatten()[i]).item<double>());
      expected += (l1 + distance[b].item<double>()) / std::exp(0.3) + 0.3;
    }
  EXPECT_NEAR(laplace_nll(x, y, distance.sum(), logvar).item<double>(), expected, 1e-10);
  EXPECT_NEAR(laplace_nll(x, y, {}, at::zeros({1}, kDoubles)).item<double>(), (x - y).abs().sum().item<double>(), 1e-10);
}

// The scale that minimises it is the mean distance a pixel.
TEST(LaplaceNll, ItsBestScaleIsTheMeanDistance) {
  at::manual_seed(2);
  const Tensor x = at::randn({4, 1, 8, 8}, kDoubles), y = at::zeros({4, 1, 8, 8}, kDoubles);
  const Tensor logvar = x.abs().mean().log().view({1}).requires_grad_(true);
  EXPECT_NEAR(torch::autograd::grad({laplace_nll(x, y, {}, logvar)}, {logvar})[0].item<double>(), 0, 1e-9);
}

TEST(AdaptiveWeight, IsARatioWithinBounds) {
  EXPECT_DOUBLE_EQ(adaptive_weight(3, 1.5), 3 / 1.5001);
  EXPECT_DOUBLE_EQ(adaptive_weight(0, 1), 0);
  EXPECT_DOUBLE_EQ(adaptive_weight(1e9, 0), 1e4);
  EXPECT_DOUBLE_EQ(adaptive_weight(5e-5, 0), 0.5);
}

TEST(ActivationRange, CountsTheDecodersActivationsAboveTheLimit) {
  const Tensor a = at::tensor({1.0, -70000.0, 20000.0}, kDoubles).requires_grad_(true);
  const TensorMap taps{{"decoder.a", a}, {"decoder.b", at::tensor({-3.0, 65504.0}, kDoubles)}, {"encoder.c", at::full({7}, 1e9, kDoubles)}};
  RangeConfig config;
  const ActivationRange plain = activation_range(taps, config);
  EXPECT_EQ(plain.largest.item<double>(), 70000);
  EXPECT_EQ(plain.above.item<int64_t>(), 1);
  EXPECT_EQ(plain.count, 5);
  EXPECT_FALSE(plain.excess.defined());
  config.penalty = 1;
  const double from = config.penalty_from, big = 70000 / 65504.0 - from, middle = 20000 / 65504.0 - from, at_limit = 1 - from;
  const ActivationRange with = activation_range(taps, config);
  EXPECT_NEAR(with.excess.item<double>(), big * big + middle * middle + at_limit * at_limit, 1e-12);
  const Tensor g = torch::autograd::grad({with.excess}, {a})[0];
  EXPECT_EQ(g[0].item<double>(), 0);
  EXPECT_NEAR(g[1].item<double>(), -2 * big / 65504, 1e-15);
}

models::AutoencoderKlConfig tiny_kl() {
  models::AutoencoderKlConfig c;
  c.in_channels = c.out_channels = 1;
  c.block_out_channels = {8, 8}, c.norm_num_groups = 4, c.latent_channels = 3, c.sample_size = 16;
  return c;
}

// Latents drawn from the posteriors and scaled have deviation 1: globally, and channel by channel about 0.
TEST(LatentScaling, ScaledLatentsHaveUnitDeviation) {
  models::AutoencoderKL model(tiny_kl());
  model.to(kDoubles);
  model.initialise(3);
  const NoGrad no_grad;
  at::manual_seed(4);
  const Tensor images = at::rand({100, 1, 16, 16}, kDoubles) * 2 - 1;
  for (auto& p : model.parameters())  // means far from 0, posteriors of different widths
    if (p.name == "quant_conv.bias") p.tensor.copy_(at::tensor({2.0, -1.0, 0.5, -2.0, 0.5, 1.0}));
  const LatentMoments moments = measure_latents(model, images);
  const models::Posterior q = model.encode(images);
  Tensor draws;
  for (int k = 0; k < 40; ++k) {
    const Tensor z = q.sample(at::randn(q.mean.sizes(), kDoubles));
    draws = draws.defined() ? at::cat({draws, z}) : z;
  }
  EXPECT_LT((draws.mean({0, 2, 3}) - moments.mean).abs().max().item<double>(), 0.01);
  EXPECT_LT((draws.var(at::OptionalIntArrayRef({0, 2, 3})) / moments.variance - 1).abs().max().item<double>(), 0.01);

  const models::AutoencoderKL global(with_scaling(tiny_kl(), moments, LatentScaling::global));
  EXPECT_NEAR(global.scale(draws).std().item<double>(), 1, 0.01);
  EXPECT_TRUE(global.config().latents_std.empty());
  const models::AutoencoderKL channels(with_scaling(tiny_kl(), moments, LatentScaling::channels));
  EXPECT_LT((channels.scale(draws).std(at::OptionalIntArrayRef({0, 2, 3})) - 1).abs().max().item<double>(), 0.01);
  EXPECT_LT(channels.scale(draws).mean({0, 2, 3}).abs().max().item<double>(), 0.02);
  EXPECT_THROW(with_scaling(tiny_kl(), {at::zeros({3}, kDoubles), at::zeros({3}, kDoubles)}, LatentScaling::global), NumericError);
}

// One step, written out: the weight of the adversarial term from both gradients at the last layer, the total gradient, the critic's
// loss on the same reconstructions.
TEST(AutoencoderStep, IsWhatTheEquationsSay) {
  AutoencoderConfig c;
  c.model = tiny_kl();
  c.precision = Precision::float64;
  c.kl_weight = 0.01, c.logvar = 0.3, c.learn_logvar = true;
  c.optimizer.clip_norm = 0;
  c.adversarial.weight = 0.5, c.adversarial.start = 0;
  c.adversarial.discriminator.channels = 8, c.adversarial.discriminator.layers = 1, c.adversarial.discriminator.norm_groups = 4;
  const auto data = FashionMnistConfig{}.build(Split::heldout);
  const auto world = dist::World::single();
  const TrainContext context{.world = *world, .seed = 11, .total_steps = 10, .horizon = 10, .batch_size = 6, .accumulate = 1,
                             .train = *data, .validation = nullptr};
  const Batch batch = load_range(*data, 0, 6, 1);
  const auto trainer = c.build(context);
  const auto got = trainer->step(batch, {.step = 2, .epoch = 0, .seed = 11}).reduce(*world);

  models::AutoencoderKlConfig mc = tiny_kl();
  mc.sample_size = 32;
  models::AutoencoderKL model(mc);
  models::PatchDiscriminator critic({.in_channels = 1, .channels = 8, .layers = 1, .norm_groups = 4});
  for (nn::Module* m : std::initializer_list<nn::Module*>{&model, &critic}) m->to(kDoubles), m->initialise(m == &model ? 11 : 12), m->requires_grad(true);
  const Tensor logvar = at::full({1}, 0.3, kDoubles).requires_grad_(true), x = batch.images.to(kDoubles);
  const models::Posterior q = model.encode(x);
  const Tensor z = q.mean + (0.5 * q.logvar).exp() * normal_by_id(batch.ids, q.mean.sizes().slice(1), 11, Stream::noise, 2).to(kDoubles);
  const Tensor y = model.decode(z), nll = ((y - x).abs() / logvar.exp() + logvar).sum() / 6, kl = q.kl().mean(), g = -critic(y).mean();
  const auto norm = [](const std::vector<Tensor>& gradients) {
    double squares = 0;
    for (const Tensor& t : gradients) squares += t.square().sum().item<double>();
    return std::sqrt(squares);
  };
  const std::vector<Tensor> last{model.last_layer().weight};
  const double weight = 0.5 * norm(torch::autograd::grad({nll}, last, {}, true)) / (norm(torch::autograd::grad({g}, last, {}, true)) + 1e-4);
  std::vector<Tensor> all{logvar};
  for (const auto& p : model.parameters()) all.push_back(p.tensor);
  EXPECT_NEAR(got.at("nll") / nll.item<double>(), 1, 1e-12);
  EXPECT_NEAR(got.at("kl") / kl.item<double>(), 1, 1e-12);
  EXPECT_NEAR(got.at("generator") / g.item<double>(), 1, 1e-12);
  EXPECT_NEAR(got.at("adversarial_weight") / weight, 1, 1e-12);
  EXPECT_NEAR(got.at("grad_norm") / norm(torch::autograd::grad({nll + 0.01 * kl + weight * g}, all)), 1, 1e-12);
  const double hinge = (at::relu(1 - critic(x)).mean() + at::relu(1 + critic(y)).mean()).item<double>();
  EXPECT_NEAR(got.at("critic") / hinge, 1, 1e-12);
}

// VGG16 as perceptual network: zero for equal images, differentiable where no channel is active, the same sum in parts.
TEST(Perceptual, ReadsVgg16) {
  const PerceptualDistance distance(FEWSTEP_SOURCE_DIR "/tests/golden/vgg16", {}, at::zeros({1, 1, 32, 32}, kDoubles));
  at::manual_seed(5);
  const Tensor y = at::rand({3, 1, 32, 32}, kDoubles) * 2 - 1;
  Tensor x = (y + 0.1 * at::randn(y.sizes(), kDoubles)).detach().requires_grad_(true);
  EXPECT_EQ(distance.sum(y, y).item<double>(), 0);
  const Tensor all = distance.sum(x, y);
  EXPECT_GT(all.item<double>(), 0);
  double parts = 0;
  for (int64_t i = 0; i < 3; ++i) parts += distance.sum(x.slice(0, i, i + 1), y.slice(0, i, i + 1)).item<double>();
  EXPECT_NEAR(all.item<double>(), parts, 1e-10);
  const Tensor g = torch::autograd::grad({all}, {x})[0];
  EXPECT_TRUE(g.isfinite().all().item<bool>());
  const double h = 1e-6;
  const NoGrad no_grad;
  Tensor up = x.clone();
  up.index({1, 0, 7, 9}).add_(h);
  EXPECT_NEAR((distance.sum(up, y).item<double>() - all.item<double>()) / h, g.index({1, 0, 7, 9}).item<double>(), 1e-6);
}

}  // namespace
}  // namespace fewstep
