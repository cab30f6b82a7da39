// Held-out loss by noise level, of models whose loss is known: a fresh network answers 0.
#include "eval/heldout_loss.h"

#include <gmock/gmock.h>

#include <cmath>

#include "datasets/dataset.h"
#include "src/base/error.h"
#include "src/config/config.h"
#include "src/models/autoencoder_kl.h"
#include "src/models/model.h"
#include "src/pipelines/conditioner_class.h"
#include "src/pipelines/diffusion_pipeline.h"
#include "src/tensor/ops.h"
#include "tests/support/message_of.h"
#include "tests/support/scratch.h"

namespace fewstep::eval {
namespace {

using diffusion::Prediction;
using ::testing::HasSubstr;

// Grey pictures of one level each, in two sizes.
class Levels : public Dataset {
 public:
  explicit Levels(int64_t count) : count_(count) {}
  int64_t size() const override { return count_; }
  Sample get(int64_t index, uint64_t, int64_t) const override {
    const BucketSize size = buckets()[static_cast<size_t>(bucket_of(index))];
    return {.id = 100 + index,
            .image = at::full({1, size.height, size.width}, level(index), at::kByte),
            .caption = "a bag",
            .label = index % 2};
  }
  std::vector<BucketSize> buckets() const override { return {{8, 8}, {8, 16}}; }
  int64_t bucket_of(int64_t index) const override { return index % 3 == 0 ? 1 : 0; }
  std::string description() const override { return "levels"; }
  std::string fingerprint() const override { return "levels"; }
  static int64_t level(int64_t index) { return 20 + 2 * index; }
  // Mean over samples of the mean square of their latents, which are 1.5 times their pixels in [-1, 1].
  double power(int64_t bucket) const {
    double sum = 0, n = 0;
    for (int64_t i = 0; i < count_; ++i) {
      if (bucket >= 0 && bucket_of(i) != bucket) continue;
      const double latent = 1.5 * (static_cast<double>(level(i)) / 127.5 - 1);
      sum += latent * latent, ++n;
    }
    return sum / n;
  }

 private:
  int64_t count_;
};

std::unique_ptr<pipelines::LatentSpace> make_space(size_t kind, const std::string& config) {
  const auto latents = pipelines::latent_space_kinds()[kind].make();
  config::read_string(
      config, "<test>", [](config::Visitor& v, void* p) { static_cast<pipelines::LatentSpaceConfig*>(p)->describe(v); },
      latents.get());
  return latents->build(1, {});
}
std::unique_ptr<pipelines::LatentSpace> folded_pixels() { return make_space(1, "{normalise: false, scale: 1.5}"); }

std::unique_ptr<pipelines::Pipeline> fresh_model(const std::filesystem::path& folder, Prediction prediction,
                                                 const pipelines::LatentSpace& latents = *folded_pixels()) {
  pipelines::ClassConditionerConfig conditioning;
  conditioning.dim = 8;
  const auto conditioner = conditioning.build({.class_names = {"dress", "bag"}, .train_tokenizer = {}});
  models::UNet2DConfig unet;
  unet.in_channels = unet.out_channels = 4, unet.sample_size = 4, unet.block_out_channels = {4, 8};
  unet.layers_per_block = {1}, unet.attention_head_dim = {2}, unet.norm_num_groups = 2, unet.addition_time_embed_dim = 4;
  unet.down_block_types = {"DownBlock2D", "CrossAttnDownBlock2D"}, unet.up_block_types = {"CrossAttnUpBlock2D", "UpBlock2D"};
  pipelines::fit_conditioning(unet, *conditioner);
  models::UNet2DConditionModel network(unet);
  network.initialise(1);  // the last convolution is zero
  TensorMap state;
  for (const NamedTensor& p : network.state()) state[p.name] = p.tensor.detach();
  pipelines::save_diffusion_model(folder, {unet, state, *conditioner, latents, diffusion::Schedule({}), prediction, {}});
  return pipelines::load(folder, at::kCPU);
}

constexpr const char* kQuarters[] = {"heldout_loss[t=0-0.25]", "heldout_loss[t=0.25-0.5]", "heldout_loss[t=0.5-0.75]",
                                     "heldout_loss[t=0.75-1]"};

TEST(HeldoutLoss, OfANetworkThatSaysZeroIsThePowerOfWhatItShouldSay) {
  const testing::ScratchFolder folder("heldout-loss");
  const Levels data(90);  // more of the first bucket than one batch holds
  const auto values = heldout_loss(*fresh_model(folder / "sample", Prediction::sample), data, 90, 3);
  EXPECT_EQ(values.size(), 7u);
  EXPECT_NEAR(values.at("heldout_loss").value, data.power(-1), 1e-5);
  EXPECT_NEAR(values.at("heldout_loss[8x8]").value, data.power(0), 1e-5);
  EXPECT_NEAR(values.at("heldout_loss[8x16]").value, data.power(1), 1e-5);
  EXPECT_EQ(values.at("heldout_loss[8x16]").n, 30);
  for (const char* quarter : kQuarters) EXPECT_NEAR(values.at(quarter).value, data.power(-1), 1e-5) << quarter;
}

TEST(HeldoutLoss, NoiseIsThatOfTheSample) {
  const testing::ScratchFolder folder("heldout-loss");
  const auto model = fresh_model(folder / "epsilon", Prediction::epsilon);
  const Levels data(90);
  const auto values = heldout_loss(*model, data, 90, 3);
  EXPECT_NEAR(values.at("heldout_loss").value, 1, 0.05);  // of the noise: 90 x 64 or 128 squares of normal numbers
  for (const char* quarter : kQuarters) EXPECT_DOUBLE_EQ(values.at(quarter).value, values.at("heldout_loss").value) << quarter;
  EXPECT_EQ(heldout_loss(*model, data, 90, 3).at("heldout_loss").value, values.at("heldout_loss").value);
  EXPECT_NE(heldout_loss(*model, data, 90, 4).at("heldout_loss").value, values.at("heldout_loss").value);
  EXPECT_EQ(heldout_loss(*model, data, 10, 3).at("heldout_loss").n, 10);
}

// Cached posteriors: the mean is what counts, as in the validation of a training.
class Posteriors : public Levels {
 public:
  explicit Posteriors(double deviation) : Levels(20), deviation_(deviation) {}
  Sample get(int64_t index, uint64_t seed, int64_t epoch) const override {
    Sample sample = Levels::get(index, seed, epoch);
    sample.image = Tensor();
    const BucketSize size = buckets()[static_cast<size_t>(bucket_of(index))];
    sample.latent_mean = at::full({4, size.height, size.width}, 0.1 * static_cast<double>(index), at::kFloat);
    sample.micro = whole_image(size.height, size.width);
    sample.latent_std = at::full_like(sample.latent_mean, deviation_);
    return sample;
  }

 private:
  double deviation_;
};

TEST(HeldoutLoss, IsOfThePosteriorsMean) {
  const testing::ScratchFolder folder("heldout-loss");
  models::AutoencoderKlConfig config;
  config.in_channels = config.out_channels = 1, config.block_out_channels = {4}, config.norm_num_groups = 2, config.scaling_factor = 0.5;
  models::AutoencoderKL vae(config);
  vae.initialise(1);
  models::save_model(folder / "autoencoder/vae", vae, config.to_json());
  const auto space = make_space(2, fmt::format("{{folder: {}}}", (folder / "autoencoder").string()));
  const auto model = fresh_model(folder / "model", Prediction::sample, *space);
  double power = 0;  // of means, scaled
  for (int index = 0; index < 20; ++index) power += std::pow(0.5 * 0.1 * index, 2) / 20;
  for (const double deviation : {0.0, 3.0})
    EXPECT_NEAR(heldout_loss(*model, Posteriors(deviation), 20, 3).at("heldout_loss").value, power, 1e-5) << deviation;
}

class NoDiffusion : public pipelines::Pipeline {
  pipelines::Generated generate(const std::vector<std::string>&, uint64_t, std::span<const int64_t>,
                                const pipelines::GenerateOptions&) override {
    return {};
  }
  std::string description() const override { return "letters"; }
};

TEST(HeldoutLoss, NeedsADiffusionModel) {
  EXPECT_THAT(message_of<ConfigError>([] { heldout_loss(NoDiffusion(), Levels(3), 3, 1); }), HasSubstr("letters; it needs a diffusion model"));
}

}  // namespace
}  // namespace fewstep::eval
