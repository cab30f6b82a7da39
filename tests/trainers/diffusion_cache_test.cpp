// Training on cached latents: the same losses as on images, a fresh draw each step, and caches of other models refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "datasets/latent_cache.h"
#include "src/models/autoencoder_kl.h"
#include "src/models/model.h"
#include "src/tensor/ops.h"
#include "tests/support/message_of.h"
#include "tests/support/scratch.h"
#include "tests/trainers/diffusion_bench.h"

namespace fewstep {
namespace {
namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::Bench;
using testing::ScoredPictures;

// vae/ in `folder`: 1 x 16 x 16 -> 4 x 8 x 8.
std::unique_ptr<models::AutoencoderKL> write_vae(const fs::path& folder, uint64_t seed) {
  models::AutoencoderKlConfig c;
  c.in_channels = c.out_channels = 1, c.block_out_channels = {8, 8}, c.norm_num_groups = 4, c.sample_size = 16;
  c.mid_block_add_attention = false, c.scaling_factor = 1.0;
  auto vae = std::make_unique<models::AutoencoderKL>(c);
  vae->initialise(seed);
  vae->requires_grad(false);
  models::save_model(folder / "vae", *vae, c.to_json());
  return vae;
}

void write_cache(const fs::path& file, const models::AutoencoderKL& vae, const fs::path& folder) {
  CacheOptions options;
  options.half = false, options.vae = vae_identity(folder), options.vae_name = folder.string();
  const CacheEncoders encoders{.images = [&](const Tensor& images) {
    const NoGrad no_grad;
    const models::Posterior p = vae.encode(images);
    return CachedPosterior{p.mean, p.std()};
  }};
  write_latent_cache(ScoredPictures(), file, encoders, options);
}

std::unique_ptr<Dataset> open_cache(const fs::path& file) {
  LatentCacheConfig config;
  config.train = config.heldout = file.string();
  return config.build(Split::train);
}

std::string vae_yaml(const fs::path& folder) {
  return fmt::format("latents: {{kind: vae, folder: {}}}\nconditioner: {}\nunet: {}\nsample: {{steps: 2, columns: 3, rows: 1}}\n"
                     "optimizer: {{lr: 1.0e-2}}\n", folder.string(), testing::kClass, testing::kUnet);
}

TEST(DiffusionCache, CachedLatentsTrainAsImagesDo) {
  const testing::ScratchFolder scratch("diffusion-cache");
  const auto vae = write_vae(scratch / "vae", 1);
  write_cache(scratch / "latents.h5", *vae, scratch / "vae");
  Bench images(vae_yaml(scratch / "vae")), cached(vae_yaml(scratch / "vae"), open_cache(scratch / "latents.h5"));
  for (const auto& [name, value] : images.validate()) EXPECT_NEAR(value, cached.validate().at(name), 1e-4) << name;
  for (int64_t step = 0; step < 6; ++step) EXPECT_NEAR(images.step(step).at("loss"), cached.step(step).at("loss"), 2e-3) << step;
  EXPECT_TRUE(cached.trainer->sample_grid(1).defined());
  cached.trainer->save_model(scratch / "model");
  EXPECT_TRUE(fs::exists(scratch / "model" / "vae" / "config.json"));
}

// The posterior is drawn anew: two passes over the same batch at different steps see different latents, at the same step the same.
TEST(DiffusionCache, ThePosteriorIsDrawnInEveryStep) {
  const testing::ScratchFolder scratch("diffusion-cache");
  const auto vae = write_vae(scratch / "vae", 1);
  const auto space = pipelines::LatentSpace::load(scratch / "vae", at::kCPU);
  const Tensor mean = at::zeros({2, 4, 8, 8}), std = at::ones({2, 4, 8, 8}), ids = at::arange(2);
  const Tensor first = space->from_posterior(mean, std, {.ids = ids, .seed = 1, .step = 0});
  EXPECT_TRUE(first.equal(space->from_posterior(mean, std, {.ids = ids, .seed = 1, .step = 0})));
  EXPECT_FALSE(first.equal(space->from_posterior(mean, std, {.ids = ids, .seed = 1, .step = 1})));
  EXPECT_NEAR(first.std().item<double>(), 1.0, 0.1);
  EXPECT_EQ(space->from_posterior(mean, std, {}).abs().max().item<double>(), 0);
}

TEST(DiffusionCache, ACacheOfAnotherAutoencoderIsRefused) {
  const testing::ScratchFolder scratch("diffusion-cache");
  const auto one = write_vae(scratch / "one", 1), two = write_vae(scratch / "two", 2);
  write_cache(scratch / "latents.h5", *one, scratch / "one");
  const std::string message = message_of<DataError>([&] { Bench(vae_yaml(scratch / "two"), open_cache(scratch / "latents.h5")); });
  EXPECT_THAT(message, AllOf(HasSubstr("latents.h5"), HasSubstr(vae_identity(scratch / "one")), HasSubstr(vae_identity(scratch / "two")),
                             HasSubstr("make it anew with `fewstep data cache")));
  const std::string pixels = testing::yaml_with(testing::kClass, "");
  EXPECT_THAT(message_of<ConfigError>([&] { Bench(pixels, open_cache(scratch / "latents.h5")); }), HasSubstr("normalise"));
  fs::copy(scratch / "one", scratch / "moved", fs::copy_options::recursive);  // the same weights elsewhere are the same
  EXPECT_NO_THROW(Bench(vae_yaml(scratch / "moved"), open_cache(scratch / "latents.h5")));
}

}  // namespace
}  // namespace fewstep
