// Sizes of image files from their headers, and what `fewstep data info` says of them.
#include <gmock/gmock.h>

#include "datasets/image_folder.h"
#include "datasets/size_summary.h"
#include "src/io/image.h"
#include "src/io/safetensors.h"
#include "src/tensor/ops.h"
#include "tests/datasets/temporary_folder.h"

namespace fewstep {
namespace {

using testing::HasSubstr;

std::vector<io::ProbedImage> sizes(std::initializer_list<io::ImageSize> list) {
  std::vector<io::ProbedImage> out;
  for (const io::ImageSize& size : list) out.push_back({size});
  return out;
}

TEST(SizeSummary, BinsHaveTheirLowerEdge) {
  const SizeSummary s =
      summarise_sizes(sizes({{255, 300}, {256, 900}, {383, 400}, {384, 384}, {512, 5000}, {511, 512}}));
  std::map<std::string, int64_t> bins;
  for (const SizeBin& bin : s.shorter_side) bins[bin.label] = bin.count;
  EXPECT_EQ(bins,
            (std::map<std::string, int64_t>{{"192 - 255", 1}, {"256 - 383", 2}, {"384 - 511", 2}, {"512 - 767", 1}}));
  EXPECT_EQ(s.images, 6);
  EXPECT_EQ(s.below_256, 1);
  EXPECT_EQ(s.below_512, 5);
  const SizeSummary wide = summarise_sizes(sizes({{28, 28}, {4000, 2048}}));
  EXPECT_EQ(wide.shorter_side.front().label, "0 - 63");
  EXPECT_EQ(wide.shorter_side.back().label, "2048 or more");
  EXPECT_EQ(wide.shorter_side.size(), 11u);  // empty ones between stay, so that gaps are seen
}

TEST(SizeSummary, AspectIsTheNearestByRatio) {
  const SizeSummary s = summarise_sizes(sizes({{640, 480}, {480, 640}, {1920, 1080}, {600, 610}, {9000, 100}}));
  std::map<std::string, int64_t> bins;
  for (const SizeBin& bin : s.aspect) bins[bin.label] = bin.count;
  EXPECT_EQ(bins, (std::map<std::string, int64_t>{{"4:3", 1}, {"3:4", 1}, {"16:9", 1}, {"1:1", 1}, {"3:1", 1}}));
}

TEST(SizeSummary, TableHasBarsAndShares) {
  std::vector<io::ProbedImage> images(4, {{300, 300}});
  images.push_back({{100, 100}});
  images.push_back({{}, "x.png: corrupt"});
  EXPECT_EQ(format_sizes(summarise_sizes(images)),
            "unreadable   1 of 6 files, the first: x.png: corrupt\n"
            "shorter side in files (pixels, from the headers)\n"
            "  64 - 127             1   20.0 %  ##########\n"
            "  128 - 191            0    0.0 %\n"
            "  192 - 255            0    0.0 %\n"
            "  256 - 383            4   80.0 %  ########################################\n"
            "aspect in files (width : height, the nearest)\n"
            "  1:1                  5  100.0 %  ########################################\n"
            "lost to a training size (shorter side below it)\n"
            "  256 pixels           1   20.0 %\n"
            "  512 pixels           5  100.0 %\n");
}

struct Probe : TemporaryFolder {};

TEST_F(Probe, ReadsHeadersInOrderAndGoesOnAfterBrokenOnes) {
  std::vector<std::filesystem::path> files;
  for (int64_t i = 0; i < 20; ++i) {
    files.push_back(folder / fmt::format("{}.{}", i, i % 3 == 0 ? "png" : i % 3 == 1 ? "jpg" : "webp"));
    io::write_image(files.back(), at::zeros({3, 10 + i, 30}, at::kByte));
  }
  write("5.webp", ""), write("6.png", "no image");
  const Tensor turned = io::Safetensors(FEWSTEP_SOURCE_DIR "/tests/golden/io/images.safetensors").get("file.exif6.jpg");
  write("7.jpg", std::string(static_cast<const char*>(turned.const_data_ptr()), static_cast<size_t>(turned.numel())));
  files.push_back(folder / "none.png");
  for (const int64_t threads : {1, 5, 0}) {
    const auto probed = io::probe_image_sizes(files, threads);
    ASSERT_EQ(probed.size(), 21u);
    for (size_t i = 0; i < 20; ++i) {
      if (i >= 5 && i <= 7) continue;
      EXPECT_EQ(probed[i].error, "");
      EXPECT_EQ(probed[i].size.width, 30);
      EXPECT_EQ(probed[i].size.height, 10 + static_cast<int64_t>(i));
    }
    EXPECT_THAT(probed[5].error, HasSubstr("5.webp"));
    EXPECT_THAT(probed[6].error, HasSubstr("not a PNG"));
    const Tensor shown = io::read_image(files[7]);  // upright: what read_image gives, not what the header says
    EXPECT_EQ(probed[7].size.width, shown.size(2));
    EXPECT_EQ(probed[7].size.height, shown.size(1));
    EXPECT_THAT(probed[20].error, HasSubstr("none.png"));
  }
  EXPECT_TRUE(io::probe_image_sizes({}).empty());
}

TEST_F(Probe, AnImageListKnowsItsFiles) {
  io::write_image(folder / "b.png", at::zeros({3, 20, 30}, at::kByte));
  io::write_image(folder / "a.png", at::zeros({3, 20, 30}, at::kByte));
  ImageFolderConfig config;
  config.folder = folder.string();
  config.require_captions = false;
  config.images = {.image_size = 8, .heldout = 0, .test = 0};
  const auto data = config.build(Split::train);
  EXPECT_EQ(data->image_file(0), folder / "a.png");
  EXPECT_EQ(data->image_file(1), folder / "b.png");
}

}  // namespace
}  // namespace fewstep
