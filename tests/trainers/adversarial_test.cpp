// DiffAug, adversarial losses and the two-stage backward.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "src/base/error.h"
#include "src/models/conv_encoder.h"
#include "src/models/feature_discriminator.h"
#include "src/nn/gradients.h"
#include "src/nn/layers.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "tests/support/live_bytes.h"
#include "trainers/adversarial_losses.h"
#include "trainers/differentiable_augmentation.h"
#include "trainers/two_stage_backward.h"

namespace fewstep {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;
using testing::with_peak;

Tensor gan_noise(at::IntArrayRef shape, int64_t id, at::ScalarType dtype = at::kDouble) {
  at::Generator g = generator_for(6, Stream::noise, 0, id);
  return at::empty(shape, dtype).normal_(0, 1, g);
}

double gan_gap(const Tensor& a, const Tensor& b) {
  EXPECT_EQ(a.sizes(), b.sizes());
  return (a - b).abs().max().item<double>();
}

Tensor sample_ids(std::vector<int64_t> ids) { return at::tensor(ids, at::kLong); }

// Pixel by pixel from the draws.
Tensor augmented_by_hand(const Tensor& image, const AugmentationDraws& d, int64_t i, bool colour) {  // [C, H, W]
  Tensor x = image + d.brightness[i].item<double>();
  const double s = d.saturation[i].item<double>(), k = d.contrast[i].item<double>();
  if (colour) x = s * x + (1 - s) * x.mean(0, true);
  x = k * x + (1 - k) * x.mean();
  const int64_t dy = d.shift_y[i].item<int64_t>(), dx = d.shift_x[i].item<int64_t>();
  const int64_t cy = d.cut_y[i].item<int64_t>(), cx = d.cut_x[i].item<int64_t>();
  Tensor out = at::zeros_like(x);
  for (int64_t r = 0; r < x.size(1); ++r)
    for (int64_t q = 0; q < x.size(2); ++q) {
      const bool inside = r - dy >= 0 && r - dy < x.size(1) && q - dx >= 0 && q - dx < x.size(2);
      const bool cut = r >= cy && r < cy + d.cut_height && q >= cx && q < cx + d.cut_width;
      if (inside && !cut) out.select(2, q).select(1, r).copy_(x.select(2, q - dx).select(1, r - dy));
    }
  return out;
}

TEST(DifferentiableAugmentation, EqualsTheClosedForm) {
  const DifferentiableAugmentationConfig c{.translation = 0.25};
  for (int64_t channels : {1, 3}) {
    const Tensor images = gan_noise({5, channels, 8, 10}, channels), ids = sample_ids({4, 17, 2, 99, 5});
    const AugmentationDraws d = draw_augmentation(c, ids, 8, 10, {.seed = 3, .step = 7, .branch = 1});
    const Tensor got = augment(images, c, d);
    for (int64_t i = 0; i < 5; ++i) EXPECT_LT(gan_gap(got[i], augmented_by_hand(images[i], d, i, channels == 3)), 1e-6) << i;
  }
}

// The map is affine in the images: finite differences are exact up to rounding.
TEST(DifferentiableAugmentation, GradientEqualsFiniteDifferences) {
  const DifferentiableAugmentationConfig c;
  const Tensor images = gan_noise({2, 3, 6, 6}, 1), direction = gan_noise({2, 3, 6, 6}, 2), weight = gan_noise({2, 3, 6, 6}, 3);
  const Tensor ids = sample_ids({1, 2});
  const AugmentationKey key{.seed = 1, .step = 2};
  const Tensor leaf = images.clone().requires_grad_(true);
  const Tensor gradient = nn::gradients((augment(leaf, c, ids, key) * weight).sum(), {leaf}, false).front();
  const double slope = ((augment(images + direction, c, ids, key) - augment(images - direction, c, ids, key)) * weight).sum().item<double>() / 2;
  EXPECT_NEAR((gradient * direction).sum().item<double>(), slope, 1e-9 * std::max(1.0, std::abs(slope)));
}

TEST(DifferentiableAugmentation, DrawsFollowTheIdAndTheBranch) {
  const DifferentiableAugmentationConfig c;
  const Tensor image = gan_noise({1, 3, 16, 16}, 1);
  const auto run = [&](int64_t id, int64_t step, int64_t branch) {
    return augment(image, c, sample_ids({id}), {.seed = 1, .step = step, .branch = branch});
  };
  EXPECT_TRUE(at::equal(run(3, 1, 0), augment(image.expand({2, -1, -1, -1}), c, sample_ids({9, 3}), {.seed = 1, .step = 1}).narrow(0, 1, 1)));
  EXPECT_GT(gan_gap(run(3, 1, 0), run(4, 1, 0)), 1e-3);
  EXPECT_GT(gan_gap(run(3, 1, 0), run(3, 2, 0)), 1e-3);
  EXPECT_GT(gan_gap(run(3, 1, 0), run(3, 1, 1)), 1e-3);
  const AugmentationDraws many = draw_augmentation(c, at::arange(4000, at::kLong), 16, 16, {.seed = 1, .step = 0});
  EXPECT_EQ(many.shift_y.min().item<int64_t>(), -2);
  EXPECT_EQ(many.shift_y.max().item<int64_t>(), 2);
  EXPECT_NEAR(many.brightness.mean().item<double>(), 0.0, 0.02);
  EXPECT_NEAR(many.contrast.min().item<double>(), 0.5, 0.01);
  EXPECT_NEAR(many.saturation.max().item<double>(), 2.0, 0.01);
  const DifferentiableAugmentationConfig off{.brightness = 0, .saturation = 0, .contrast = 0, .translation = 0, .cutout = 0};
  EXPECT_TRUE(at::equal(augment(image, off, sample_ids({1}), {}), image));
}

TEST(AdversarialLosses, ClosedForms) {
  const Tensor d = at::tensor({-2.0, 0.5, 3.0, 1.0}, at::kDouble).view({2, 2});
  const auto expect = [&](const Tensor& got, double first, double second) {
    EXPECT_NEAR(got[0].item<double>(), first, 1e-12);
    EXPECT_NEAR(got[1].item<double>(), second, 1e-12);
  };
  const auto softplus = [](double x) { return std::log1p(std::exp(x)); };
  expect(critic_real_loss(AdversarialLoss::hinge, d), (3 + 0.5) / 2, 0);
  expect(critic_fake_loss(AdversarialLoss::hinge, d), (0 + 1.5) / 2, (4 + 2) / 2.0);
  expect(generator_loss(AdversarialLoss::hinge, d), 0.75, -2);
  expect(critic_real_loss(AdversarialLoss::non_saturating, d), (softplus(2) + softplus(-0.5)) / 2, (softplus(-3) + softplus(-1)) / 2);
  expect(critic_fake_loss(AdversarialLoss::non_saturating, d), (softplus(-2) + softplus(0.5)) / 2, (softplus(3) + softplus(1)) / 2);
  expect(generator_loss(AdversarialLoss::non_saturating, d), (softplus(2) + softplus(-0.5)) / 2, (softplus(-3) + softplus(-1)) / 2);
}

TEST(AdversarialLosses, AccuracyIsKeptApart) {
  const Tensor real = at::tensor({1.0, -1.0, 2.0, 3.0}).view({2, 2}), fake = at::tensor({0.0, -1.0}).view({1, 2});
  CriticAccuracies a = critic_accuracies(real, {}, fake);
  EXPECT_DOUBLE_EQ(*a.real.share(), 0.75);
  EXPECT_FALSE(a.teacher.share().has_value());
  EXPECT_DOUBLE_EQ(*a.fake.share(), 0.5);
  a.real += critic_accuracy(at::full({2, 2}, -1.0), true);
  EXPECT_DOUBLE_EQ(*a.real.share(), 0.375);
}

// A critic linear in x_t = (1 - t) x0 + t n: the difference is (1 - t)^2 a^2 (w . p)^2 if and only if both share t and noise.
TEST(AdversarialLosses, ApproximateR1SharesTimeAndNoise) {
  const Tensor x0 = gan_noise({3, 5}, 1), noise = gan_noise({3, 5}, 2), p = gan_noise({3, 5}, 3), w = gan_noise({5, 1}, 4);
  const Tensor t = at::tensor({0.1, 0.5, 0.9}, at::kDouble);
  const Critic critic = [&](const CriticInput& in) {
    const Tensor s = in.t.unsqueeze(1);
    return at::mm((1 - s) * in.x0 + s * in.noise, w);
  };
  const CriticInput input{.x0 = x0, .t = t, .noise = noise};
  const Tensor expected = ((1 - t) * 0.1 * at::mm(p, w).squeeze(1)).square();
  EXPECT_LT(gan_gap(approximate_r1(critic, input, p, 0.1), expected), 1e-12);
  EXPECT_LT(gan_gap(approximate_r1(critic, input, p, 0.1, critic(input)), expected), 1e-12);
  EXPECT_THAT([&] { approximate_r1(critic, input, p, 0.0); }, ThrowsMessage<ConfigError>(HasSubstr("approximate R1")));
}

// A student with much inner state, a decoder (x 4) and a discriminator.
struct SmallGan {
  nn::Conv2d student_in{2, 24}, student_mid{24, 24}, student_out{24, 2};
  nn::Conv2d decoder_in{2, 8}, decoder_out{8, 3};
  nn::Conv2d critic_in{3, 12}, critic_out{12, 1};
  SmallGan() {
    uint64_t seed = 1;
    for (nn::Conv2d* layer : {&student_in, &student_mid, &student_out, &decoder_in, &decoder_out, &critic_in, &critic_out}) {
      layer->initialise(seed++);
      layer->to(at::kDouble);
      layer->requires_grad(true);
    }
  }
  Tensor student(const Tensor& x) const {
    Tensor h = at::silu(student_in(x));
    for (int i = 0; i < 12; ++i) h = at::silu(student_mid(h));
    return student_out(h);
  }
  Tensor decode(const Tensor& z) const {
    return at::tanh(decoder_out(at::silu(at::upsample_nearest2d(decoder_in(at::upsample_nearest2d(z, {z.size(2) * 2, z.size(3) * 2})),
                                                                 {z.size(2) * 4, z.size(3) * 4}))));
  }
  Tensor loss(const Tensor& images) const {
    return generator_loss(AdversarialLoss::non_saturating, critic_out(at::leaky_relu(critic_in(images), 0.2))).sum();
  }
  std::vector<Tensor> weights() const {
    return {student_in.weight, student_in.bias, student_mid.weight, student_mid.bias, student_out.weight, student_out.bias};
  }
};

double relative_gap(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) worst = std::max(worst, gan_gap(a[i], b[i]) / a[i].abs().max().item<double>());
  return worst;
}

TEST(TwoStageBackward, GradientsOfOneGraphWithLessMemory) {
  const SmallGan gan;
  const Tensor x = gan_noise({4, 2, 16, 16}, 1), ids = at::arange(4, at::kLong);
  const auto decode = [&](const Tensor& z) { return gan.decode(z); };
  const auto loss = [&](const Tensor& images) { return gan.loss(images); };
  const auto [expected, one_graph] = with_peak([&] { return nn::gradients(loss(decode(gan.student(x))), gan.weights(), false); });
  for (int64_t part : {0, 1, 3}) {
    const auto [got, peak] = with_peak([&] {
      PixelGradient pixel;
      {
        const NoGrad no_grad;  // the student's graph is made after the decoder's is gone
        pixel = pixel_gradient(gan.student(x), ids, decode, loss, {.decode_part = part});
      }
      const Tensor gradient = pixel.gradient;
      pixel = {};
      return nn::gradients(injected_gradient(gan.student(x), gradient), gan.weights(), false);
    });
    EXPECT_LT(relative_gap(expected, got), 1e-5) << part;
    EXPECT_LT(static_cast<double>(peak), 0.85 * static_cast<double>(one_graph)) << part;
    std::printf("decode_part %ld: largest relative difference %.2e, peak %.2f MB against %.2f MB in one graph\n", part,
                relative_gap(expected, got), static_cast<double>(peak) / 1e6, static_cast<double>(one_graph) / 1e6);
  }
}

// The parts together: augmentation, taps of a frozen encoder, spectral heads (eval mode: the generator's turn moves no u).
TEST(TwoStageBackward, AFeatureDiscriminatorGivesTheSameGradientInParts) {
  models::ConvEncoderConfig e;
  e.in_channels = 3;
  models::ConvEncoder encoder{e};
  encoder.initialise(1);
  const models::FeatureTapOptions taps{.blocks = {1, 2}};
  models::FeatureDiscriminatorConfig c;
  c.channels = models::tap_channels(encoder, taps), c.virtual_batch = 3;
  models::FeatureDiscriminator critic(c);
  critic.initialise(2);
  const nn::EvalMode eval(critic);
  nn::Conv2d decoder(2, 3);
  decoder.initialise(3);
  const Tensor z = gan_noise({4, 2, 16, 16}, 1, at::kFloat), ids = sample_ids({3, 1, 4, 15});
  const auto decode = [&](const Tensor& latents) { return at::tanh(decoder(at::upsample_nearest2d(latents, {32, 32}))); };
  const auto loss = [&](const Tensor& images) {
    const Tensor seen = augment(images, {}, ids, {.seed = 1, .step = 2, .branch = 1});
    return generator_loss(AdversarialLoss::hinge, critic(models::feature_taps(encoder, seen, taps), {}, ids)).sum();
  };
  const Tensor leaf = z.clone().requires_grad_(true);
  const Tensor expected = nn::gradients(loss(decode(leaf)), {leaf}, false).front();
  EXPECT_GT(expected.abs().max().item<double>(), 0.0);
  for (int64_t part : {0, 1}) EXPECT_LT(relative_gap({expected}, {pixel_gradient(z, ids, decode, loss, {.decode_part = part}).gradient}), 1e-5);
}

TEST(TwoStageBackward, APseudoTargetGivesTheSameGradient) {
  const SmallGan gan;
  const Tensor x = gan_noise({2, 2, 8, 8}, 1), gradient = gan_noise({2, 2, 8, 8}, 2);
  const Tensor x0 = gan.student(x);
  const auto exact = nn::gradients(injected_gradient(x0, gradient), gan.weights(), true);
  const Tensor squares = 0.5 * (x0 - pseudo_target(x0, gradient)).square().sum();
  EXPECT_LT(relative_gap(exact, nn::gradients(squares, gan.weights(), false)), 1e-10);
}

// Cropped: the gradient of the loss on the window of the fully decoded image, when the halo covers what the decoder sees.
TEST(TwoStageBackward, CroppedGradientIsThatOfTheWindow) {
  const SmallGan gan;
  const Tensor z = gan_noise({3, 2, 12, 14}, 1), ids = sample_ids({5, 11, 8});
  const auto decode = [&](const Tensor& latents) { return gan.decode(latents); };
  const auto loss = [&](const Tensor& images) { return gan.loss(images); };
  const TwoStageOptions options{.crop = {.size = 4, .halo = 2}, .key = {.seed = 3, .step = 1}};
  const LatentWindows windows = latent_windows(options.crop, ids, 12, 14, options.key);
  const Tensor leaf = z.clone().requires_grad_(true);
  const Tensor expected = nn::gradients(loss(take_pixel_windows(decode(leaf), windows, 4)), {leaf}, false).front();
  for (int64_t part : {0, 2}) {
    TwoStageOptions by_part = options;
    by_part.decode_part = part;
    const PixelGradient got = pixel_gradient(z, ids, decode, loss, by_part);
    EXPECT_EQ(got.images.sizes(), at::IntArrayRef({3, 3, 16, 16}));
    EXPECT_LT(relative_gap({expected}, {got.gradient}), 1e-10) << part;
    EXPECT_LT(gan_gap(got.images, take_pixel_windows(decode(z), windows, 4)), 1e-12);
  }
  TwoStageOptions bare = options;  // without halo the decoder sees zeros beside the window
  bare.crop.halo = 0;
  EXPECT_GT(relative_gap({expected}, {pixel_gradient(z, ids, decode, loss, bare).gradient}), 1e-3);
}

TEST(TwoStageBackward, WindowsFollowTheIdAndStayInside) {
  const LatentCropConfig c{.size = 5, .halo = 2};
  const CropKey key{.seed = 1, .step = 4};
  const LatentWindows many = latent_windows(c, at::arange(500, at::kLong), 9, 12, key), one = latent_windows(c, sample_ids({77}), 9, 12, key);
  EXPECT_EQ(many.inner_y[77].item<int64_t>(), one.inner_y[0].item<int64_t>());
  EXPECT_EQ(many.inner_y.min().item<int64_t>(), 0);
  EXPECT_EQ(many.inner_y.max().item<int64_t>(), 4);
  EXPECT_EQ(many.inner_x.max().item<int64_t>(), 7);
  EXPECT_EQ(many.outer_height, 9);
  EXPECT_EQ(many.outer_width, 9);
  EXPECT_TRUE((many.outer_x + 9).le(12).all().item<bool>());
}

TEST(TwoStageBackward, ACropLargerThanTheImageIsRefused) {
  const SmallGan gan;
  EXPECT_THAT(
      [&] {
        pixel_gradient(gan_noise({1, 2, 8, 6}, 1), sample_ids({0}), [&](const Tensor& z) { return gan.decode(z); },
                       [&](const Tensor& images) { return gan.loss(images); }, {.crop = {.size = 7, .halo = 1}});
      },
      ThrowsMessage<ConfigError>(HasSubstr("discriminator crop of 7 x 7 latents is larger than the image of 8 x 6")));
}

}  // namespace
}  // namespace fewstep
