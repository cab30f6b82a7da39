// Tux Paint's stamps: a folder made here in the package's layout, and the package itself where it is installed.
#include <gmock/gmock.h>
#include <zlib.h>

#include <fstream>
#include <set>

#include "datasets/tuxpaint_stamps.h"
#include "src/base/error.h"
#include "src/tensor/ops.h"
#include "tests/support/message_of.h"
#include "tests/support/scratch.h"

namespace fewstep {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

// RGBA of one colour whose left half is transparent.
std::string half_transparent_png(uint32_t width, uint32_t height, const std::array<uint8_t, 3>& colour) {
  const auto number = [](uint32_t n) {
    std::string bytes;
    for (int shift : {24, 16, 8, 0}) bytes.push_back(static_cast<char>(n >> shift));
    return bytes;
  };
  const auto chunk = [&](const std::string& name, const std::string& data) {
    const std::string body = name + data;
    const auto crc = crc32(0, reinterpret_cast<const Bytef*>(body.data()), static_cast<uInt>(body.size()));
    return number(static_cast<uint32_t>(data.size())) + body + number(static_cast<uint32_t>(crc));
  };
  std::string rows;
  for (uint32_t y = 0; y < height; ++y) {
    rows.push_back('\0');  // no filter
    for (uint32_t x = 0; x < width; ++x) {
      for (uint8_t c : colour) rows.push_back(static_cast<char>(c));
      rows.push_back(static_cast<char>(x < width / 2 ? 0 : 255));
    }
  }
  uLongf size = compressBound(rows.size());
  std::string packed(size, '\0');
  compress(reinterpret_cast<Bytef*>(packed.data()), &size, reinterpret_cast<const Bytef*>(rows.data()), rows.size());
  packed.resize(size);
  std::string header = number(width) + number(height) + std::string({8, 6, 0, 0, 0});
  return "\x89PNG\r\n\x1a\n" + chunk("IHDR", header) + chunk("IDAT", packed) + chunk("IEND", "");
}

struct Stamps : ::testing::Test {
  testing::ScratchFolder scratch{"stamps"};
  void write(const std::string& name, const std::string& bytes) const {
    fs::create_directories((scratch / name).parent_path());
    std::ofstream(scratch / name, std::ios::binary) << bytes;
  }
  TuxpaintStampsConfig config() const {
    TuxpaintStampsConfig c;
    c.folder = scratch.path().string();
    c.images.image_size = 16;
    c.images.heldout = c.images.test = 0;
    return c;
  }
};

TEST_F(Stamps, AreReadWithEnglishCaptionsOnWhite) {
  write("vehicles/car.png", half_transparent_png(64, 32, {200, 10, 20}));
  write("vehicles/car.txt", "A red car.\nde.utf8=Ein rotes Auto.\nja.utf8=\xe8\xbb\x8a\n");
  write("vehicles/car_mirror.png", half_transparent_png(64, 32, {0, 0, 0}));
  write("animals/birds/owl.png", half_transparent_png(20, 60, {10, 200, 20}));
  write("animals/birds/owl.txt", "\r\nxx.utf8=nothing English\n");
  write("animals/birds/07_barn-owl.png", half_transparent_png(40, 40, {10, 20, 200}));
  write("animals/birds/owl.ogg", "sound");
  const auto data = config().build(Split::train);
  ASSERT_EQ(data->size(), 3);
  EXPECT_EQ(data->class_names(), (std::vector<std::string>{"animals", "vehicles"}));
  const Sample barn = data->get(0, 0, 0), owl = data->get(1, 0, 0), car = data->get(2, 0, 0);
  EXPECT_EQ(barn.caption, "barn owl");
  EXPECT_EQ(owl.caption, "owl");
  EXPECT_EQ(car.caption, "A red car.");
  EXPECT_EQ(owl.label, 0);
  EXPECT_EQ(car.label, 1);
  EXPECT_EQ(barn.image.sizes().vec(), (std::vector<int64_t>{3, 16, 16}));
  EXPECT_TRUE(barn.image.select(2, 0).eq(255).all().item<bool>());  // transparent
  EXPECT_EQ(barn.image[2][8][15].item<int64_t>(), 200);
  EXPECT_EQ(car.micro, (MicroConditioning{32, 64, 0, 8, 16, 16}));  // 16 x 32, cut in the middle
  EXPECT_THAT(data->description(), HasSubstr("3 images"));
}

TEST_F(Stamps, GoToBucketsOfTheirAspect) {
  for (int i = 0; i < 3; ++i) {
    write(fmt::format("a/wide{}.png", i), half_transparent_png(64, 32, {1, 2, 3}));
    write(fmt::format("a/tall{}.png", i), half_transparent_png(32, 64, {1, 2, 3}));
  }
  auto c = config();
  c.images.targets.buckets.kind = BucketKind::list;
  c.images.targets.buckets.sizes = {"16x32", "32x16"};
  const auto data = c.build(Split::train);
  for (int64_t i = 0; i < data->size(); ++i) {
    const bool wide = data->get(i, 0, 0).caption.starts_with("wide");
    EXPECT_EQ(data->bucket_of(i), wide ? 0 : 1);
    EXPECT_EQ(data->get(i, 0, 0).image.size(2), wide ? 32 : 16);
  }
}

TEST_F(Stamps, SaysHowToGetThem) {
  auto c = config();
  c.folder = (scratch / "none").string();
  const std::string message = message_of<DataError>([&] { c.build(Split::train); });
  EXPECT_THAT(message, HasSubstr("apt-get install tuxpaint-stamps-default"));
  EXPECT_THAT(message, HasSubstr("data.folder"));
  EXPECT_THAT(message_of<DataError>([&] { config().build(Split::train); }), HasSubstr("no PNG pictures"));
}

TEST(RealStamps, AreAllReadable) {
  if (!fs::exists(TuxpaintStampsConfig().folder)) GTEST_SKIP() << "install tuxpaint-stamps-default";
  TuxpaintStampsConfig c;
  c.images.image_size = 32;
  std::set<int64_t> ids;
  std::set<std::string> captions;
  for (Split split : {Split::train, Split::heldout, Split::test}) {
    const auto data = c.build(split);
    for (int64_t i = 0; i < data->size(); ++i) {
      const Sample sample = data->get(i, 0, 0);
      EXPECT_EQ(sample.image.sizes().vec(), (std::vector<int64_t>{3, 32, 32}));
      EXPECT_TRUE(ids.insert(sample.id).second);
      EXPECT_FALSE(sample.caption.empty());
      captions.insert(sample.caption);
    }
  }
  EXPECT_GT(ids.size(), 700u);
  EXPECT_GT(captions.size(), 600u);
}

}  // namespace
}  // namespace fewstep
