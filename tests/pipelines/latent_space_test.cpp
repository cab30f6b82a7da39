// Pixels to latents and back.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "src/config/config.h"
#include "src/pipelines/latent_space.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "tests/support/message_of.h"
#include "tests/support/scratch.h"

namespace fewstep::pipelines {
namespace {

using ::testing::HasSubstr;
const std::filesystem::path kGolden = FEWSTEP_SOURCE_DIR "/tests/golden/sdxl_pipeline";

struct SpaceConfig {
  std::unique_ptr<LatentSpaceConfig> latents;
};
void describe(config::Visitor& v, SpaceConfig& c) { v.field("latents", c.latents, "", latent_space_kinds()); }

std::unique_ptr<LatentSpaceConfig> parse(const std::string& yaml) {
  return std::move(config::parse<SpaceConfig>(yaml).latents);
}

Tensor pictures(int64_t count, int64_t channels, int64_t side) {
  return normal_by_id(at::arange(count), {channels, side, side}, 1, Stream::eval, 0).mul(0.3).add(0.2).clamp(-1, 1);
}

TEST(PixelSpace, FoldsLosslesslyAndNormalises) {
  const Tensor x = pictures(6, 1, 32);
  const auto space = parse("latents: {kind: pixel_unshuffle, factor: 2}")->build(1, x);
  EXPECT_EQ(space->channels(), 4);
  EXPECT_EQ(space->factor(), 2);
  const Tensor z = space->encode(x);
  EXPECT_EQ(z.sizes(), at::IntArrayRef({6, 4, 16, 16}));
  EXPECT_NEAR(z.mean().item<double>(), 0, 1e-5);
  EXPECT_NEAR(z.std().item<double>(), 1, 1e-4);
  EXPECT_LT((space->decode(z) - x).abs().max().item<double>(), 1e-6);
  const auto colour = parse("latents: {kind: pixel_unshuffle, factor: 2, normalise: false}")->build(3, {});
  EXPECT_EQ(colour->channels(), 12);
}

TEST(PixelSpace, RefusesOddSizesAndOtherChannels) {
  const auto space = parse("latents: {kind: pixel_unshuffle, normalise: false}")->build(1, {});
  EXPECT_THAT(message_of<ConfigError>([&] { space->encode(pictures(1, 1, 31)); }),
              HasSubstr("31 x 31 are not a multiple of 2"));
  EXPECT_THAT(message_of<ConfigError>([&] { space->encode(pictures(1, 3, 32)); }), HasSubstr("3 channels, it takes 1"));
  EXPECT_THAT(message_of([&] { space->from_posterior({}, {}); }), HasSubstr("no posterior"));
}

TEST(PixelSpace, SavesAndLoads) {
  const testing::ScratchFolder folder("latents");
  const Tensor x = pictures(3, 3, 8);
  const auto space = parse("latents: {kind: identity}")->build(3, x);
  space->save(folder / "model");
  const auto loaded = LatentSpace::load(folder / "model", at::kCPU);
  EXPECT_EQ(loaded->kind(), "identity");
  EXPECT_TRUE(loaded->encode(x).equal(space->encode(x)));
  EXPECT_EQ(latent_difference(*space, *loaded), 0);
}

TEST(VaeSpace, PosteriorDependsOnSampleAndStepOnly) {
  const auto space = LatentSpace::load(kGolden, at::kCPU);
  const Tensor x = pictures(4, 3, 16), ids = at::arange(10, 14);
  const Tensor all = space->encode(x, {.ids = ids, .seed = 2, .step = 5});
  EXPECT_EQ(all.sizes(), at::IntArrayRef({4, 4, 8, 8}));
  const Tensor part = space->encode(x.slice(0, 1, 3), {.ids = ids.slice(0, 1, 3), .seed = 2, .step = 5});
  EXPECT_TRUE(at::allclose(part, all.slice(0, 1, 3), 1e-5, 1e-6));
  EXPECT_FALSE(at::allclose(space->encode(x, {.ids = ids, .seed = 2, .step = 6}), all));
  const Tensor mode = space->encode(x);
  EXPECT_FALSE(mode.requires_grad());
  EXPECT_EQ(space->decode(mode).sizes(), x.sizes());
}

TEST(VaeSpace, CachedPosteriorsGiveWhatEncodingGives) {
  const auto space = LatentSpace::load(kGolden, at::kCPU);
  const Tensor x = pictures(2, 3, 16), ids = at::arange(2);
  const double factor = 0.13025;
  const Tensor mean = space->encode(x) / factor;
  // The deviation from two draws of one noise: z = (mean + std n) factor.
  const Tensor noise = normal_by_id(ids, {4, 8, 8}, 2, Stream::posterior, 5);
  const Tensor std = (space->encode(x, {.ids = ids, .seed = 2, .step = 5}) / factor - mean) / noise;
  const Tensor other = space->from_posterior(mean, std, {.ids = ids, .seed = 2, .step = 6});
  EXPECT_TRUE(at::allclose(other, space->encode(x, {.ids = ids, .seed = 2, .step = 6}), 1e-3, 1e-4));
}

TEST(VaeSpace, TellsStrangersApart) {
  const auto vae = LatentSpace::load(kGolden, at::kCPU);
  EXPECT_EQ(latent_difference(*vae, *vae), 0);
  const auto pixels = parse("latents: {kind: identity, normalise: false}")->build(3, {});
  EXPECT_GT(latent_difference(*vae, *pixels), kSameLatents);
}

TEST(LatentSpaces, ErrorsNameTheFolder) {
  const testing::ScratchFolder folder("latents");
  EXPECT_THAT(message_of<DataError>([&] { LatentSpace::load(folder.path(), at::kCPU); }),
              HasSubstr("neither vae/config.json"));
  const auto config = parse("latents: {kind: vae, folder: /nowhere}");
  EXPECT_THAT(message_of<ConfigError>([&] { config->build(3, {}); }), HasSubstr("/nowhere"));
  EXPECT_THAT(message_of<ConfigError>([&] { parse("latents: {kind: vae}"); }), HasSubstr("folder"));
}

}  // namespace
}  // namespace fewstep::pipelines
