// `fewstep data cache` as a user meets it: what lies in the file is what the model's own encoders make of the pictures.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <set>

#include "datasets/image_folder.h"
#include "datasets/latent_cache.h"
#include "src/base/files.h"
#include "src/io/image.h"
#include "src/models/autoencoder_kl.h"
#include "src/models/model.h"
#include "src/pipelines/conditioner.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "tests/support/process.h"
#include "tests/support/scratch.h"
#include "tests/support/small_stability.h"

namespace fewstep {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class DataCacheCli : public ::testing::Test {
 protected:
  static constexpr int64_t kPictures = 5;
  const testing::ScratchFolder scratch{"data-cache-cli"};
  const fs::path model = scratch / "model", pictures = scratch / "pictures", out = scratch / "train.h5";

  void SetUp() override {
    support::write_small_release(model, support::SmallRelease::base, FEWSTEP_SOURCE_DIR "/tests/golden/clip_tokenizer");
    fs::create_directories(pictures);
    for (int64_t i = 0; i < kPictures; ++i) {
      const int64_t h = 40 + 9 * i, w = 90 - 8 * i;
      const Tensor ramp = at::arange(3 * h * w).mul(0.013 * static_cast<double>(i + 1)).sin().mul(120).add(128);
      io::write_image(pictures / fmt::format("{}.png", i), ramp.to(at::kByte).view({3, h, w}));
      std::ofstream(pictures / fmt::format("{}.txt", i)) << (i < 2 ? "a dress\n" : fmt::format("a bag number {}\n", i));
    }
  }
  testing::Finished run(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), FEWSTEP_BINARY);
    return testing::Child(arguments, scratch.path(), {{"OMP_NUM_THREADS", "1"}}).wait();
  }
  testing::Finished cache(std::vector<std::string> more = {}) const {
    std::vector<std::string> arguments = {
        "data",          "cache",       "--kind",   "image_folder", "folder=" + pictures.string(),
        "image_size=32", "crop=random", "flip=0.5", "heldout=0",    "test=0",
        "--out",         out.string()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run(arguments);
  }
  std::unique_ptr<Dataset> source() const {
    ImageFolderConfig c;
    c.folder = pictures.string();
    c.images.image_size = 32, c.images.heldout = c.images.test = 0;
    c.images.targets.framing.crop = CropKind::random, c.images.targets.framing.flip = 0.5;
    return c.build(Split::train);
  }
};

TEST_F(DataCacheCli, HoldsWhatTheModelsEncodersMake) {
  const auto made =
      cache({"--vae", model.string(), "--text", model.string(), "--variants", "2", "--seed", "4", "--batch", "3"});
  ASSERT_EQ(made.code, 0) << made.output;
  EXPECT_THAT(made.output, HasSubstr("2 variants of"));
  LatentCacheConfig config;
  config.train = out.string();
  const auto data = config.build(Split::train);
  const auto& cached = dynamic_cast<const LatentCache&>(*data);
  cached.check(vae_identity(model), text_encoder_identity(model));
  ASSERT_EQ(data->size(), kPictures);

  const auto images = source();
  const auto module = models::load_model(model / "vae");
  const auto& vae = dynamic_cast<const models::AutoencoderKL&>(*module);
  const auto conditioner = pipelines::Conditioner::load(model, at::kCPU);
  const NoGrad no_grad;
  for (int64_t i = 0; i < kPictures; ++i)
    for (int64_t epoch = 0; epoch < 2; ++epoch) {
      const Sample sample = data->get(i, 9, epoch);
      bool found = false;
      for (int64_t k = 0; k < 2; ++k) {
        const Sample variant = images->get(i, 4, k);
        if (variant.micro != sample.micro) continue;
        found = true;
        const auto posterior = vae.encode(io::to_float(variant.image).unsqueeze(0));
        const auto off = [](const Tensor& a, const Tensor& b) {
          return ((a - b).abs().max() / b.abs().max()).item<double>();
        };
        EXPECT_LT(off(sample.latent_mean, posterior.mean[0]), 1e-3);  // halves
        EXPECT_LT(off(sample.latent_std, posterior.std()[0]), 1e-3);
      }
      EXPECT_TRUE(found) << i;
      pipelines::ConditionInput input;
      input.captions = {sample.caption, ""};
      input.micro = at::zeros({2, 6});
      const auto text = (*conditioner)(input);
      EXPECT_LT((sample.context - text.context[0]).abs().max().item<double>(),
                5e-3 * text.context[0].abs().max().item<double>());
      EXPECT_LT((sample.pooled - text.pooled[0]).abs().max().item<double>(),
                5e-3 * text.pooled[0].abs().max().item<double>());
      EXPECT_LT((cached.null_context() - text.context[1]).abs().max().item<double>(),
                5e-3 * text.context[1].abs().max().item<double>());
    }

  const auto info = run({"data", "info", out.string()});
  EXPECT_EQ(info.code, 0);
  EXPECT_THAT(info.output, HasSubstr("latent cache"));
  EXPECT_THAT(info.output, HasSubstr(cached.facts().key()));
  const auto verified = run({"data", "verify", out.string()});
  EXPECT_EQ(verified.code, 0);
  EXPECT_THAT(verified.output, HasSubstr("all 5 samples can be read"));
}

TEST_F(DataCacheCli, SaysWhatIsWrong) {
  auto failed = cache({"--vae", (scratch / "none").string()});
  EXPECT_EQ(failed.code, 3) << failed.output;
  failed = cache({"--vae", model.string(), "grey=true"});
  EXPECT_EQ(failed.code, 2);
  EXPECT_THAT(failed.output, HasSubstr("images of 1 channels, the autoencoder takes 3"));
  failed = cache({"--vae", model.string(), "image_size=30"});
  EXPECT_EQ(failed.code, 2);
  EXPECT_THAT(failed.output, HasSubstr("not a multiple"));
  failed = cache({"--vae", (model / "unet").string()});
  EXPECT_EQ(failed.code, 2);
  EXPECT_THAT(failed.output, HasSubstr("another network than AutoencoderKL"));
  EXPECT_FALSE(fs::exists(out));

  ASSERT_EQ(cache({"--vae", (model / "vae").string()}).code, 0);  // the autoencoder's own folder will do
  const auto again =
      run({"data", "cache", out.string(), "--vae", model.string(), "--out", (scratch / "b.h5").string()});
  EXPECT_EQ(again.code, 2);
  EXPECT_THAT(again.output, HasSubstr("holds latents already"));
  // A torn file is refused before HDF5 sees it.
  fs::resize_file(out, fs::file_size(out) / 2);
  const auto torn = run({"data", "info", out.string()});
  EXPECT_EQ(torn.code, 3) << torn.output;
}

}  // namespace
}  // namespace fewstep
