// Metrics of reconstructions: against the pair metrics and the plain Frechet distance, on made-up images and networks.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "eval/pair_metrics.h"
#include "eval/reconstruction.h"
#include "eval/runner.h"
#include "src/base/error.h"
#include "src/models/conv_encoder.h"
#include "src/models/model.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "tests/support/message_of.h"
#include "tests/support/scratch.h"

namespace fewstep::eval {
namespace {

using ::testing::HasSubstr;

// 8 features: means of the quadrants of rows and columns.
class Quadrants : public ImageEncoder {
 public:
  Encoded encode(const Tensor& images) const override {
    const Tensor x = images.to(at::kFloat).mean(1);
    return {at::cat({x.mean(1).view({x.size(0), 4, -1}).mean(2), x.mean(2).view({x.size(0), 4, -1}).mean(2)}, 1), {}};
  }
  EncoderIdentity identity() const override { return {.name = "judge", .sha256 = std::string(64, 'a')}; }
};

struct Fixture {
  Quadrants judge;
  MetricContext context;
  ImageSet set;
  explicit Fixture(int64_t n = 300) {
    at::manual_seed(3);
    const Tensor originals = at::randint(0, 200, {n, 1, 16, 16}).to(at::kByte);
    set.images = (originals.to(at::kShort) + at::randint(-20, 30, {n, 1, 16, 16}).to(at::kShort)).clamp(0, 255).to(at::kByte);
    if (n > 7) set.images[7].copy_(originals[7]);  // one comes back as it was
    set.originals = originals;
    set.captions.resize(static_cast<size_t>(n));
    context.judge = &judge;
  }
};

TEST(Reconstruction, PsnrAndSsimAreMeansOverImages) {
  Fixture f;
  const auto values = measure(f.set, true, {"psnr", "ssim"}, f.context);
  double p = 0, s = 0;
  for (int64_t i = 0; i < 300; ++i) {
    if (i != 7) p += psnr(f.set.originals[i], f.set.images[i]) / 299;
    s += ssim(f.set.originals[i], f.set.images[i]) / 300;
  }
  EXPECT_NEAR(values.at("PSNR").value, p, 1e-9);
  EXPECT_EQ(values.at("PSNR").n, 299);
  EXPECT_THAT(values.at("PSNR").note, HasSubstr("1 of 300 images are equal"));
  EXPECT_GT(values.at("PSNR").ci95, 0);
  EXPECT_NEAR(values.at("SSIM").value, s, 1e-9);
}

TEST(Reconstruction, RfdIsAgainstTheOriginals) {
  Fixture f;
  const auto values = measure(f.set, true, {"rfd"}, f.context);
  FeatureStatistics a, b;
  a.add(f.judge.features(f.set.originals)), b.add(f.judge.features(f.set.images));
  EXPECT_NEAR(values.at("rFD[judge@aaaaaaaa]").value, frechet_distance(a, b), 1e-6 * frechet_distance(a, b));
  f.set.images = f.set.originals;
  EXPECT_NEAR(measure(f.set, true, {"rfd"}, f.context).at("rFD[judge@aaaaaaaa]").value, 0, 1e-6);
}

TEST(Reconstruction, SetsWithoutOriginalsAreLeftOut) {
  Fixture f;
  f.set.originals = Tensor();
  EXPECT_TRUE(measure(f.set, true, {"psnr", "ssim", "rfd"}, f.context).empty());
}

TEST(Reconstruction, ThePerceptualDistanceReadsAnEncoderOrVgg16) {
  const testing::ScratchFolder folder("reconstruction");
  models::ConvEncoderConfig c;
  c.image_size = 16;
  models::ConvEncoder encoder(c);
  encoder.initialise(5);
  models::save_model(folder.path(), encoder, c.to_json());
  Fixture f(20);
  f.context.perceptual = folder.path(), f.context.perceptual_name = "judge";
  const auto values = measure(f.set, true, {"perceptual"}, f.context);
  ASSERT_EQ(values.size(), 1u);
  EXPECT_THAT(values.begin()->first, HasSubstr("perceptual[judge@"));
  const NoGrad no_grad;
  const auto stages = [&](const Tensor& x) { return encoder.stages(x.to(at::kFloat) / 127.5 - 1); };
  double expected = 0;
  const auto a = stages(f.set.originals), b = stages(f.set.images);
  for (size_t k = 0; k < a.size(); ++k) {
    const Tensor u = a[k] / a[k].norm(2, {1}, true), v = b[k] / b[k].norm(2, {1}, true);
    expected += (u - v).square().sum(1).mean().item<double>();
  }
  EXPECT_NEAR(values.begin()->second.value, expected, 1e-5 * expected);

  f.context.perceptual = FEWSTEP_SOURCE_DIR "/tests/golden/vgg16", f.context.perceptual_name = "vgg16";
  const auto of_vgg = measure(f.set, true, {"perceptual"}, f.context);
  EXPECT_THAT(of_vgg.begin()->first, HasSubstr("perceptual[vgg16@"));
  EXPECT_GT(of_vgg.begin()->second.value, 0);
  EXPECT_EQ(of_vgg.begin()->second.n, 20);
}

TEST(Reconstruction, WhatIsMissingIsNamed) {
  Fixture f(4);
  f.context.judge = nullptr;
  EXPECT_THAT(message_of([&] { measure(f.set, true, {"rfd"}, f.context); }), HasSubstr("'judge'"));
  EXPECT_THAT(message_of([&] { measure(f.set, true, {"perceptual"}, f.context); }), HasSubstr("'perceptual'"));
}

}  // namespace
}  // namespace fewstep::eval
