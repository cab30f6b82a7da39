// Patches at full resolution, and the names of distances that are not FID.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "eval/compare.h"
#include "eval/frechet.h"
#include "eval/patch_distance.h"
#include "eval/preprocessing.h"
#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/text.h"
#include "src/io/image.h"
#include "src/io/safetensors.h"
#include "src/tensor/ops.h"
#include "tests/support/message_of.h"

namespace fewstep::eval {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
const fs::path kGolden = FEWSTEP_SOURCE_DIR "/tests/golden";

// Reads 8 x 8; its features are the first pixel's channels and the mean.
class Corners : public ImageEncoder {
 public:
  Encoded encode(const Tensor& images) const override { return encode_prepared(images.to(at::kFloat)); }
  Tensor prepare(const Tensor& image) const override {
    const Tensor x = image.to(at::kFloat);
    return image.size(1) == 8 && image.size(2) == 8 ? x : at::_upsample_bicubic2d_aa(x.unsqueeze(0), {8, 8}, false)[0];
  }
  Encoded encode_prepared(const Tensor& batch) const override {
    return {at::cat({batch.select(2, 0).select(2, 0), batch.mean({1, 2, 3}).unsqueeze(1)}, 1), {}};
  }
  EncoderIdentity identity() const override { return {"corners", std::string(64, 'd')}; }
};

class Patches : public testing::Test {
 protected:
  const fs::path folder = fs::temp_directory_path() / fmt::format("fewstep-patches-{}", ::getpid());
  const fs::path a = folder / "a", b = folder / "b";
  const Corners encoder;
  void SetUp() override { fs::remove_all(folder), make_directories(a), make_directories(b); }
  void TearDown() override { fs::remove_all(folder); }
  static Tensor picture(int64_t height, int64_t width, int64_t seed) {
    return at::arange(3 * height * width).mul(7 + seed).remainder(251).to(at::kByte).view({3, height, width});
  }
  static void add(const fs::path& file, int64_t height, int64_t width, int64_t seed) {
    io::write_image(file, picture(height, width, seed));
  }
};

TEST(CentreCrop, BeginsWhereTorchvisionsDoes) {
  int checked = 0;
  for (const auto& [name, begin] : io::Safetensors(kGolden / "pairs/io.safetensors").all()) {
    const auto parts = split(name, '.');  // crop.H.W
    if (parts[0] != "crop") continue;
    const int64_t H = std::stoll(parts[1]), W = std::stoll(parts[2]);
    const int64_t first = crop_centre(at::arange(H * W).view({1, H, W}), 8)[0][0][0].item<int64_t>();
    EXPECT_EQ(first / W, begin[0].item<int64_t>()) << name;
    EXPECT_EQ(first % W, begin[1].item<int64_t>()) << name;
    ++checked;
  }
  EXPECT_EQ(checked, 4);
  EXPECT_THROW(crop_centre(at::zeros({1, 7, 9}), 8), DataError);
}

// A crop of the network's own side is not resized: what remains of the pipeline is its map of values.
TEST(PatchOfInception, OnlyTheValueMapRemains) {
  const auto crop = at::arange(3 * 301 * 310).mul(7).remainder(256).to(at::kByte).view({3, 301, 310});
  const Tensor inside = crop_centre(crop, 299).to(at::kFloat);
  for (const char* mode : {"clean", "tf-legacy", "torchmetrics", "pytorch-fid"}) {
    const auto inception =
        load_image_encoder(kGolden / "fid_inception_slim16", "inception", at::kCPU, {.pipeline = mode});
    EXPECT_EQ(network_side(*inception), 299);
    const Tensor row = PatchEncoder(*inception, {}).prepare(crop);
    ASSERT_EQ(row.sizes(), (std::vector<int64_t>{1, 3, 299, 299}));
    const Tensor wanted = std::string_view(mode) == "pytorch-fid" ? 2 * (inside / 255) - 1 : (inside - 128) / 128;
    EXPECT_LT((row[0] - wanted).abs().max().item<float>(), 1e-6) << mode;
  }
}

TEST_F(Patches, CentralOnesAreTheCropsFeatures) {
  for (int64_t i = 0; i < 6; ++i)
    add(a / fmt::format("{}.png", i), 9 + i, 20, i), add(b / fmt::format("{}.png", i), 16, 8 + 3 * i, 40 + i);
  FeatureStatistics real, judged;
  for (int64_t i = 0; i < 6; ++i) {
    real.add(encoder.features(crop_centre(picture(9 + i, 20, i), 8).unsqueeze(0)));
    judged.add(encoder.features(crop_centre(picture(16, 8 + 3 * i, 40 + i), 8).unsqueeze(0)));
  }
  const Json j = patch_distance(a, b, encoder);
  EXPECT_NEAR(j["metrics"]["patch_FD[corners@dddddddd,crop=8]"]["value"].get<double>(), frechet_distance(real, judged),
              1e-6 * frechet_distance(real, judged));
  EXPECT_EQ(j["b"]["n"], 6);
  EXPECT_EQ(j["a"]["small"], 0);
}

TEST_F(Patches, GridTakesEveryPatchThatFits) {
  const Tensor image = picture(20, 27, 3);  // 2 x 3 patches of 8
  const Tensor features = PatchEncoder(encoder, {.grid = true}).encode(image.unsqueeze(0)).features;
  ASSERT_EQ(features.sizes(), (std::vector<int64_t>{1, 6, 4}));
  for (int64_t p = 0; p < 6; ++p) {
    const Tensor patch = image.narrow(1, p / 3 * 8, 8).narrow(2, p % 3 * 8, 8);
    EXPECT_TRUE(features[0][p].equal(encoder.features(patch.unsqueeze(0))[0])) << p;
  }
  for (int64_t i = 0; i < 4; ++i)
    add(a / fmt::format("{}.png", i), 20, 27, i), add(b / fmt::format("{}.png", i), 16, 12 + 4 * i, 40 + i);
  const Json j = patch_distance(a, b, encoder, {.side = 4, .grid = true});
  EXPECT_TRUE(j["metrics"].contains("patch_FD[corners@dddddddd,grid=4]"));
  EXPECT_EQ(j["a"]["n"], 4 * 5 * 6);
  EXPECT_EQ(j["b"]["n"], 4 * (3 + 4 + 5 + 6));
  EXPECT_EQ(j["b"]["images"], 4);
}

TEST_F(Patches, SmallImagesAreAnErrorOrCounted) {
  for (int64_t i = 0; i < 5; ++i)
    add(a / fmt::format("{}.png", i), 12, 12, i), add(b / fmt::format("{}.png", i), i % 2 == 1 ? 7 : 12, 30, i);
  const auto said = message_of<DataError>([&] { patch_distance(a, b, encoder); });
  EXPECT_THAT(said, AllOf(HasSubstr("2 of 5 images have a side below 8"), HasSubstr("1.png (30 x 7)"),
                          HasSubstr("clean-fid would squash them: mixed populations"), HasSubstr("--skip-small")));
  const Json j = patch_distance(a, b, encoder, {.skip_small = true});
  EXPECT_EQ(j["b"]["small"], 2);
  EXPECT_EQ(j["b"]["n"], 3);
  EXPECT_THAT(message_of<DataError>([&] { patch_distance(a, b, encoder, {.side = 13, .skip_small = true}); }),
              HasSubstr("all 5 images have a side below 13"));
  EXPECT_THAT(message_of<DataError>([&] { patch_distance(a, folder / "c.h5", encoder); }), HasSubstr("no such folder"));
}

// Patches of one image are alike: groups that split an image would claim more than is known.
TEST(GroupedRows, OfOneSampleStayTogether) {
  const Tensor x = at::randn({7, 3, 2}, at::kDouble);
  GroupedStatistics whole(4), parts(4);
  whole.add(x);
  parts.add(x.narrow(0, 0, 3)), parts.add(x.narrow(0, 3, 4));
  EXPECT_EQ(whole.count(), 7);
  EXPECT_EQ(whole.total().count(), 21);
  for (int64_t g = 0; g < 4; ++g) {
    FeatureStatistics expected;
    for (int64_t i = 0; i < 7; ++i)
      if (i % 4 != g) expected.add(x[i]);
    for (const GroupedStatistics* s : {&whole, &parts}) {
      EXPECT_EQ(s->all_but(g).count(), expected.count());
      EXPECT_TRUE(at::allclose(s->all_but(g).covariance(), expected.covariance(), 1e-9, 1e-12));
    }
  }
}

TEST(DistanceNames, SpatialAndPatchesAreNotFid) {
  EncoderIdentity published{
      .name = "i", .sha256 = std::string(64, 'a'), .source_sha256 = "6726825d" + std::string(56, '0')};
  published.pipeline = "clean";
  EXPECT_EQ(metric_name("FD", published), "FID[clean]");
  EXPECT_EQ(metric_name("patch_FD", published, "crop=299"), "patch-FID[clean,crop=299]");
  published.pipeline = "clean,tap=spatial";
  EXPECT_EQ(metric_name("FD", published), "sFID[clean,tap=spatial]");
  EncoderIdentity own = published;
  own.source_sha256.clear();
  EXPECT_EQ(metric_name("FD", own), "sFD[i@aaaaaaaa,clean,tap=spatial]");
  EXPECT_NO_THROW(check_metric_name("sFID[clean,tap=spatial]", std::vector{published}));
  EXPECT_THROW(check_metric_name("sFID[clean,tap=spatial]", std::vector{own}), ConfigError);
  EXPECT_THROW(check_metric_name("patch-FID[clean]", std::vector{own}), ConfigError);
  EXPECT_THROW(check_metric_name("patch_FD", std::vector{own}), ConfigError);
}

}  // namespace
}  // namespace fewstep::eval
