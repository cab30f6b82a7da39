// Algorithm 1: cover, flip, crop, and the numbers that describe it.
#include "datasets/framing.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "datasets/image_folder.h"
#include "datasets/loader.h"
#include "datasets/packed.h"
#include "src/base/philox.h"
#include "src/base/json.h"
#include "src/config/config.h"
#include "src/tensor/ops.h"
#include "tests/support/message_of.h"
#include "tests/support/scratch.h"

namespace fewstep {
namespace {

using ::testing::HasSubstr;
using testing::ScratchFolder;

Tensor noise_image(int64_t height, int64_t width, uint64_t seed = 1) {
  Tensor image = at::empty({3, height, width}, at::kByte);
  uint8_t* p = image.mutable_data_ptr<uint8_t>();
  for (int64_t i = 0; i < image.numel(); ++i) p[i] = static_cast<uint8_t>(philox_u64(seed, static_cast<uint64_t>(i / 7), 0));
  return image;
}

// Every property that Algorithm 1 promises, for many sizes and all of the paper's buckets.
TEST(Framing, CoversTheTargetAndCropsTheAxisWithSlack) {
  const FramingConfig random{.crop = CropKind::random, .flip = 0.5};
  for (uint64_t i = 0; i < 400; ++i) {
    const auto h = static_cast<int64_t>(40 + philox_u64(2, i, 0) % 4000), w = static_cast<int64_t>(40 + philox_u64(2, i, 1) % 4000);
    const BucketSize target = sdxl_buckets()[static_cast<size_t>(i % 40)];
    const Frame f = choose_frame(h, w, target, random, {3, 0, static_cast<int64_t>(i)});
    const MicroConditioning& m = f.micro;
    EXPECT_EQ(m.original_height, h);
    EXPECT_EQ(m.original_width, w);
    EXPECT_EQ((BucketSize{m.target_height, m.target_width}), target);
    EXPECT_TRUE(f.resized_height == target.height || f.resized_width == target.width);
    EXPECT_GE(f.resized_height, target.height);
    EXPECT_GE(f.resized_width, target.width);
    // The aspect is kept to half a pixel on the longer side.
    const double scale = std::max(static_cast<double>(target.height) / static_cast<double>(h), static_cast<double>(target.width) / static_cast<double>(w));
    EXPECT_NEAR(static_cast<double>(f.resized_height), static_cast<double>(h) * scale, 0.5 + 1e-9);
    EXPECT_NEAR(static_cast<double>(f.resized_width), static_cast<double>(w) * scale, 0.5 + 1e-9);
    EXPECT_GE(m.crop_top, 0);
    EXPECT_LE(m.crop_top, f.resized_height - target.height);
    EXPECT_GE(m.crop_left, 0);
    EXPECT_LE(m.crop_left, f.resized_width - target.width);
    // image aspect against bucket aspect, not h against w
    if (h * target.width > w * target.height) { EXPECT_EQ(m.crop_left, 0); }
    if (h * target.width < w * target.height) { EXPECT_EQ(m.crop_top, 0); }
    EXPECT_EQ(choose_frame(h, w, target, {}, {3, 0, 0}).micro.crop_left, (f.resized_width - target.width) / 2);
    EXPECT_EQ(choose_frame(h, w, target, {}, {3, 0, 0}).micro.crop_top, (f.resized_height - target.height) / 2);
  }
}

TEST(Framing, OffsetsAreUniformWithBothEndsAndKeyed) {
  const FramingConfig random{.crop = CropKind::random, .flip = 0.25};
  std::map<int64_t, int64_t> lefts;
  int64_t flips = 0, both = 0;
  constexpr int64_t kDraws = 12000;
  for (int64_t id = 0; id < kDraws; ++id) {
    const Frame f = choose_frame(8, 13, {8, 8}, random, {1, 4, id});
    ++lefts[f.micro.crop_left];
    flips += f.micro.flipped;
    both += f.micro.flipped && f.micro.crop_left == 0;
  }
  ASSERT_EQ(lefts.size(), 6u);  // 0 ... 5
  EXPECT_EQ(lefts.rbegin()->first, 5);
  for (const auto& [left, count] : lefts) EXPECT_NEAR(static_cast<double>(count), kDraws / 6.0, 200) << left;
  EXPECT_NEAR(static_cast<double>(flips), 0.25 * kDraws, 220);
  EXPECT_NEAR(static_cast<double>(both), 0.25 * kDraws / 6, 110);  // independent
  const auto at_key = [&](FrameKey key) {
    const Frame f = choose_frame(100, 4000, {100, 100}, random, key);
    return std::pair(f.micro.crop_left, f.micro.flipped);
  };
  EXPECT_EQ(at_key({1, 2, 3}), at_key({1, 2, 3}));
  EXPECT_NE(at_key({1, 2, 3}), at_key({2, 2, 3}));
  EXPECT_NE(at_key({1, 2, 3}), at_key({1, 3, 3}));
  EXPECT_NE(at_key({1, 2, 3}), at_key({1, 2, 4}));
}

// One way through the fused decoder, one step by step: resize all, mirror all, cut.
TEST(Framing, PixelsAreThoseOfTheThreeSteps) {
  for (uint64_t i = 0; i < 24; ++i) {
    const auto h = static_cast<int64_t>(30 + philox_u64(5, i, 0) % 150), w = static_cast<int64_t>(30 + philox_u64(5, i, 1) % 150);
    const BucketSize target{static_cast<int64_t>(8 * (1 + philox_u64(5, i, 2) % 8)), static_cast<int64_t>(8 * (1 + philox_u64(5, i, 3) % 8))};
    const Tensor image = noise_image(h, w, i);
    const Frame f = choose_frame(h, w, target, {.crop = CropKind::random, .flip = 0.5}, {9, 0, static_cast<int64_t>(i)});
    const MicroConditioning& m = f.micro;
    Tensor whole = io::resize(image, f.resized_width, f.resized_height);
    if (m.flipped) whole = whole.flip({2});
    const Tensor expected = whole.slice(1, m.crop_top, m.crop_top + target.height).slice(2, m.crop_left, m.crop_left + target.width);
    EXPECT_TRUE(at::equal(apply_frame(image, f), expected)) << micro_text(m);
    EXPECT_TRUE(at::equal(decode_frame(io::encode_png(image), "x", io::Channels::rgb, f, DecodeKind::exact), expected));
    const std::string jpeg = io::encode_image(image, ".jpg", 90);
    EXPECT_TRUE(at::equal(decode_frame(jpeg, "x", io::Channels::rgb, f, DecodeKind::exact), apply_frame(io::decode_image(jpeg, "x"), f)));
  }
}

TEST(Framing, FastDecodingIsCloseAndFramedAlike) {
  const Tensor smooth = io::resize(noise_image(60, 80), 1600, 1200);
  const std::string jpeg = io::encode_image(smooth, ".jpg", 92);
  const Frame f = choose_frame(1200, 1600, {256, 320}, {.crop = CropKind::random}, {1, 0, 0});
  const Tensor exact = decode_frame(jpeg, "x", io::Channels::rgb, f, DecodeKind::exact);
  const Tensor fast = decode_frame(jpeg, "x", io::Channels::rgb, f, DecodeKind::fast);
  ASSERT_EQ(fast.sizes(), exact.sizes());
  EXPECT_FALSE(at::equal(fast, exact));
  EXPECT_LT((fast.to(at::kFloat) - exact.to(at::kFloat)).abs().mean().item<double>(), 1.0);
  const Tensor shifted = exact.roll(2, 2);  // control: two pixels of shift are far more
  EXPECT_GT((shifted.to(at::kFloat) - exact.to(at::kFloat)).abs().mean().item<double>(), 2.0);
}

TEST(Framing, PlainSquaresAreWhatTheyAlwaysWere) {
  for (const auto& [h, w] : std::vector<std::pair<int64_t, int64_t>>{{37, 91}, {91, 37}, {64, 64}, {32, 32}, {20, 33}, {33, 33}}) {
    const Tensor image = noise_image(h, w);
    const int64_t size = 32, shorter = std::min(h, w);
    const auto scaled = [&](int64_t side) { return std::max(size, (side * size + shorter / 2) / shorter); };
    const Tensor old = h == size && w == size ? image : io::center_crop(io::resize(image, scaled(w), scaled(h)), size, size);
    EXPECT_TRUE(at::equal(apply_frame(image, choose_frame(h, w, {size, size}, {}, {0, 0, 0})), old)) << h << " " << w;
  }
}

TEST(Framing, SmallImagesAreRefusedByIdWhenTheyMayNotGrow) {
  EXPECT_THAT(message_of<DataError>([] { choose_frame(100, 400, {128, 128}, {.upscale = false}, {0, 0, 41}); }),
              HasSubstr("sample 41: 100 x 400 (height x width) is smaller than its target 128x128"));
  EXPECT_NO_THROW(choose_frame(128, 400, {128, 128}, {.upscale = false}, {0, 0, 41}));
}

TEST(Framing, FramedAgainAddsUp) {
  // 100 x 300 -> 50 x 150, crop 50 x 50 at 20; that at 20 x 20: scale 0.4.
  const MicroConditioning stored{100, 300, 0, 20, 50, 50, false};
  const MicroConditioning m = framed_again(stored, choose_frame(50, 50, {20, 20}, {}, {0, 0, 0}));
  EXPECT_EQ(m, (MicroConditioning{100, 300, 0, 8, 20, 20, false}));
  const MicroConditioning mirrored = framed_again(stored, choose_frame(50, 50, {20, 20}, {.flip = 1}, {0, 0, 0}));
  EXPECT_EQ(mirrored, (MicroConditioning{100, 300, 0, 32, 20, 20, true}));  // (150 - 50 - 20) 0.4
}

TEST(Micro, NumbersInOrderAndExact) {
  const MicroConditioning m{768, 4001, 3, 161, 1024, 960, true};
  const Tensor t = micro_tensor(std::vector<MicroConditioning>{m, whole_image(5, 6)});
  EXPECT_TRUE(at::equal(t, at::tensor({768, 4001, 3, 161, 1024, 960, 5, 6, 0, 0, 5, 6}, at::kFloat).view({2, 6})));
  EXPECT_EQ(micro_of_numbers(micro_numbers(m), true), m);
}

// --- through data sets ---

struct FramedFolder : ::testing::Test {
  void image(const std::string& name, int64_t height, int64_t width) { io::write_image(scratch / name, noise_image(height, width)); }
  ImageFolderConfig config(const std::string& more) {
    ImageFolderConfig read;
    config::read_string("{folder: " + scratch.path().string() + ", require_captions: false, heldout: 0, test: 0" + more + "}", "test",
                        [](config::Visitor& v, void* c) { static_cast<ImageFolderConfig*>(c)->describe(v); }, &read);
    return read;
  }
  ScratchFolder scratch{"framing"};
};

TEST_F(FramedFolder, BucketsByHeaderWithTheRightNumbers) {
  image("a.png", 64, 64), image("b.png", 48, 96), image("c.jpg", 100, 50), image("d.webp", 70, 64);
  const auto data = config(", crop: random, buckets: {kind: list, sizes: [32x32, 24x48, 48x24]}").build(Split::train);
  ASSERT_EQ(data->size(), 4);
  EXPECT_EQ(data->buckets().size(), 3u);
  const std::vector<int64_t> expected = {0, 1, 2, 0};
  for (int64_t i = 0; i < 4; ++i) {
    EXPECT_EQ(data->bucket_of(i), expected[static_cast<size_t>(i)]) << i;
    const Sample sample = data->get(i, 0, 0);
    EXPECT_EQ(sample.image.size(1), data->buckets()[static_cast<size_t>(data->bucket_of(i))].height);
    EXPECT_EQ(sample.image.size(2), data->buckets()[static_cast<size_t>(data->bucket_of(i))].width);
  }
  EXPECT_EQ(data->get(2, 0, 0).micro.original_height, 100);
  EXPECT_EQ(data->get_in(2, 0, 0, 0).image.size(2), 32);  // framed for another bucket
  EXPECT_EQ(data->conditioning_facts().dump(),
            R"({"image_size":256,"crop":"random","flip":0.0,"decode":"exact","small_images":"upscale","buckets":["32x32","24x48","48x24"]})");
}

TEST_F(FramedFolder, SmallImagesByPolicy) {
  image("a.png", 64, 64), image("b.png", 30, 200), image("c.png", 20, 20);
  EXPECT_EQ(config(", image_size: 32").build(Split::train)->size(), 3);
  const auto dropped = config(", image_size: 32, small_images: drop").build(Split::train);
  ASSERT_EQ(dropped->size(), 1);
  EXPECT_EQ(dropped->get(0, 0, 0).id, 0);
  const std::string error = message_of<DataError>([&] { config(", image_size: 32, small_images: error").build(Split::train); });
  EXPECT_THAT(error, HasSubstr("2 of 3 images are smaller than their target size"));
  EXPECT_THAT(error, HasSubstr("b.png is 30x200, its target 32x32"));
  EXPECT_THAT(error, HasSubstr("small_images: drop"));
  EXPECT_THAT(message_of<DataError>([&] { config(", image_size: 100, small_images: drop").build(Split::train); }),
              HasSubstr("none of 3 images is left"));
}

TEST_F(FramedFolder, FingerprintKnowsTheFraming) {
  image("a.png", 64, 80);
  const auto print = [&](const std::string& more) { return config(more).build(Split::train)->fingerprint(); };
  EXPECT_EQ(print(""), print(", crop: center, flip: 0, decode: exact"));
  EXPECT_NE(print(""), print(", crop: random"));
  EXPECT_NE(print(""), print(", flip: 0.5"));
  EXPECT_NE(print(""), print(", decode: fast"));
  EXPECT_NE(print(", buckets: {kind: sdxl}"), print(", buckets: {kind: generated}"));
}

TEST_F(FramedFolder, SizeCacheIsUsedAndNoticesChanges) {
  image("a.png", 64, 64), image("b.png", 48, 96);
  const std::string cache = (scratch / "sizes.txt").string();
  const std::string more = ", size_cache: " + cache + ", buckets: {kind: list, sizes: [32x32, 24x48]}";
  EXPECT_EQ(config(more).build(Split::train)->bucket_of(1), 1);
  std::ifstream in(cache);
  const std::string text((std::istreambuf_iterator<char>(in)), {});
  EXPECT_THAT(text, HasSubstr(" 96 48 "));
  // A planted size is believed while bytes and time agree ...
  std::string planted = text;
  planted.replace(planted.find(" 96 48 "), 7, " 48 48 ");
  std::ofstream(cache) << planted << "no line of ours\n";
  EXPECT_EQ(config(more).build(Split::train)->bucket_of(1), 0);
  // ... and not when the file has changed.
  std::filesystem::last_write_time(scratch / "b.png", std::filesystem::file_time_type::clock::now() + std::chrono::hours(1));
  EXPECT_EQ(config(more).build(Split::train)->bucket_of(1), 1);
}

TEST_F(FramedFolder, PackedAsFilesGivesTheSameFrames) {
  image("a.png", 64, 64), image("b.png", 48, 96), image("c.jpg", 100, 50);
  const std::string framing = "crop: random, flip: 0.5, buckets: {kind: list, sizes: [32x32, 24x48, 48x24]}";
  const auto source = config(", " + framing).build(Split::train);
  pack_dataset(*source, scratch / "out.h5", {});
  PackedConfig packed;
  config::read_string("{train: " + (scratch / "out.h5").string() + ", " + framing + "}", "test",
                      [](config::Visitor& v, void* c) { static_cast<PackedConfig*>(c)->describe(v); }, &packed);
  const auto data = packed.build(Split::train);
  ASSERT_EQ(data->size(), 3);
  for (int64_t i = 0; i < 3; ++i)
    for (int64_t epoch = 0; epoch < 3; ++epoch) {
      const Sample x = source->get(i, 1, epoch), y = data->get(i, 1, epoch);
      EXPECT_EQ(x.micro, y.micro);
      EXPECT_TRUE(at::equal(x.image, y.image)) << i;
      EXPECT_EQ(x.id, y.id);
      EXPECT_EQ(source->bucket_of(i), data->bucket_of(i));
    }
  EXPECT_NE(source->fingerprint(), "");
  // Squares are packed as pixels, with their numbers.
  const auto square = config(", image_size: 32").build(Split::train);
  pack_dataset(*square, scratch / "square.h5", {});
  PackedConfig plain;
  plain.train = (scratch / "square.h5").string();
  const auto read = plain.build(Split::train);
  EXPECT_EQ(read->get(1, 0, 0).micro, square->get(1, 0, 0).micro);
  EXPECT_EQ(read->get(1, 0, 0).micro, (MicroConditioning{48, 96, 0, 16, 32, 32, false}));
  EXPECT_THAT(message_of<ConfigError>([&] {
                plain.targets.framing.crop = CropKind::random;
                plain.targets.framing.flip = 0.5;
                pack_dataset(*plain.build(Split::train), scratch / "again.h5", {});
              }),
              HasSubstr("framed anew every epoch"));
  plain.targets.buckets.kind = BucketKind::sdxl;
  EXPECT_THAT(message_of<ConfigError>([&] { plain.build(Split::train); }), HasSubstr("need encoded pictures"));
}

TEST_F(FramedFolder, ScoresClassesAndTheBatchThatHoldsThem) {
  std::filesystem::create_directories(scratch / "cat"), std::filesystem::create_directories(scratch / "dog");
  image("cat/1.png", 40, 40), image("dog/1.png", 40, 60), image("dog/2.png", 60, 40);
  std::ofstream(scratch / "metadata.jsonl") << R"({"file_name": "dog/1.png", "text": "a dog", "aesthetic": 7.25})" << "\n";
  const auto data = config(", class_folders: true, image_size: 32").build(Split::train);
  EXPECT_EQ(data->class_names(), (std::vector<std::string>{"cat", "dog"}));
  Batch batch = load_range(*data, 0, 3, 0);
  EXPECT_TRUE(at::equal(batch.labels, at::tensor({0, 1, 1}, at::kLong)));
  EXPECT_TRUE(at::equal(batch.aesthetic, at::tensor({kNoScore, 7.25, kNoScore}, at::kFloat)));
  EXPECT_TRUE(at::equal(batch.micro[1], at::tensor({40, 60, 0, 8, 32, 32}, at::kFloat)));
  EXPECT_TRUE(at::equal(batch.slice(1, 3).micro, batch.micro.slice(0, 1, 3)));
  EXPECT_FALSE(batch.slice(1, 3).latent_mean.defined());
  std::ofstream(scratch / "metadata.jsonl") << R"({"file_name": "dog/1.png", "text": "a dog", "aesthetic": "good"})" << "\n";
  EXPECT_THAT(message_of<DataError>([&] { config("").build(Split::train); }), HasSubstr("\"aesthetic\" is \"good\""));
  std::ofstream(scratch / "metadata.jsonl") << R"({"file_name": "dog/1.png", "text": "a dog", "aesthetic": -2})" << "\n";
  EXPECT_THAT(message_of<DataError>([&] { config("").build(Split::train); }), HasSubstr("\"aesthetic\" is -2, not a number from 0 on"));
  // A score of 6 is another thing than none.
  std::set<std::string> prints;
  for (const char* score : {"", R"(, "aesthetic": 6)", R"(, "aesthetic": 7)"}) {
    std::ofstream(scratch / "metadata.jsonl") << R"({"file_name": "dog/1.png", "text": "a dog")" << score << "}\n";
    prints.insert(config(", class_folders: true").build(Split::train)->fingerprint());
  }
  EXPECT_EQ(prints.size(), 3u);
}

TEST(Collate, CachedTensorsComeInAllSamplesOrInNone) {
  std::vector<Sample> samples(2);
  for (int64_t i = 0; i < 2; ++i) {
    Sample& sample = samples[static_cast<size_t>(i)];
    sample.id = i;
    sample.micro = whole_image(16, 24);
    sample.latent_mean = at::full({4, 2, 3}, i, at::kFloat), sample.latent_std = at::ones({4, 2, 3});
    sample.context = at::full({5, 7}, i, at::kFloat), sample.pooled = at::full({3}, i, at::kFloat);
  }
  const Batch batch = collate(samples, std::vector<int64_t>{3, 4});
  EXPECT_FALSE(batch.images.defined());
  EXPECT_EQ(batch.latent_mean.sizes().vec(), (std::vector<int64_t>{2, 4, 2, 3}));
  EXPECT_EQ(batch.context.sizes().vec(), (std::vector<int64_t>{2, 5, 7}));
  EXPECT_EQ(batch.pooled[1][2].item<float>(), 1.0f);
  EXPECT_TRUE(at::equal(batch.epochs, at::tensor({3, 4}, at::kLong)));
  EXPECT_EQ(batch.slice(1, 2).latent_std.size(0), 1);
  EXPECT_EQ(batch.to(at::kCPU).context.size(0), 2);
  samples[1].context = Tensor();
  EXPECT_THAT(message_of<DataError>([&] { collate(samples); }), HasSubstr("sample 1 has no cached text context"));
  samples[1].context = at::zeros({6, 7});
  EXPECT_THAT(message_of<DataError>([&] { collate(samples); }), HasSubstr("cached text context is 6 x 7"));
}

}  // namespace
}  // namespace fewstep
