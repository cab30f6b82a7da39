// Folders of images through published networks: order, mixed sizes, and what is said of files that are not as they
// should be.
#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "eval/compare.h"
#include "eval/extraction.h"
#include "src/base/error.h"
#include "src/base/files.h"
#include "src/io/image.h"
#include "src/tensor/ops.h"
#include "tests/support/message_of.h"

namespace fewstep::eval {
namespace {

using testing::HasSubstr;
const std::filesystem::path kGolden = FEWSTEP_SOURCE_DIR "/tests/golden";

class Folders : public testing::Test {
 protected:
  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / fmt::format("fewstep-folders-{}", ::getpid());
  void SetUp() override { std::filesystem::remove_all(folder), make_directories(folder); }
  void TearDown() override { std::filesystem::remove_all(folder); }
  static Tensor picture(int64_t height, int64_t width, int64_t seed) {
    return at::arange(3 * height * width).mul(7 + seed).remainder(251).to(at::kByte).view({3, height, width});
  }
  std::filesystem::path add(const std::string& name, int64_t height, int64_t width, int64_t seed) const {
    make_directories((folder / name).parent_path());
    io::write_image(folder / name, picture(height, width, seed));
    return folder / name;
  }
  void write(const std::string& name, const std::string& text) const { std::ofstream(folder / name) << text; }
};

std::unique_ptr<ImageEncoder> slim(const EncoderOptions& options = {}) {
  return load_image_encoder(kGolden / "fid_inception_slim16", "inception", at::kCPU, options);
}

TEST_F(Folders, FeaturesComeInOrderWhateverTheBatchAndTheThreads) {
  std::vector<std::string> files;
  for (int64_t i = 0; i < 7; ++i) files.push_back(add(fmt::format("{}.png", i), 20 + 5 * i, 31 + i, i).filename());
  const auto encoder = slim();
  const auto run = [&](int64_t batch, int64_t threads) {
    std::vector<Tensor> parts;
    const Extraction e = extract(*image_files_of(folder, files), *encoder, {.batch = batch, .threads = threads},
                                 [&](const Encoded& x) { parts.push_back(x.features); });
    EXPECT_EQ(e.images, 7);
    return at::cat(parts);
  };
  const Tensor all = run(32, 1);
  ASSERT_EQ(all.sizes(), (std::vector<int64_t>{7, 128}));
  EXPECT_TRUE(at::allclose(run(3, 3), all, 1e-5, 1e-5));
  EXPECT_TRUE(at::allclose(run(1, 9), all, 1e-5, 1e-5));
  EXPECT_TRUE(at::allclose(encoder->features(io::read_image(folder / files[4]).unsqueeze(0))[0], all[4], 1e-5, 1e-5));
}

// Resizing rounds differently in one thread and in two: the number must not depend on who starts first.
TEST_F(Folders, ImagesArePreparedInOneThreadEach) {
  struct Threads : ImageEncoder {
    Encoded encode(const Tensor& x) const override { return {x, {}}; }
    Tensor prepare(const Tensor&) const override { return at::full({1}, at::get_num_threads(), at::kFloat); }
    EncoderIdentity identity() const override { return {}; }
  };
  for (int64_t i = 0; i < 12; ++i) add(fmt::format("{:02}.png", i), 20, 20, i);
  const int before = at::get_num_threads();
  at::set_num_threads(3);
  for (const int64_t threads : {1, 2, 5})
    extract(*open_images(folder), Threads(), {.threads = threads},
            [&](const Encoded& x) { EXPECT_EQ(x.features.max().item<double>(), 1) << threads; });
  EXPECT_EQ(at::get_num_threads(), 3);
  at::set_num_threads(before);
}

// On a CPU the network takes eight at a time: the features are those of the images one by one.
TEST_F(Folders, LargeBatchesAreCutForTheNetwork) {
  std::vector<Tensor> images;
  for (int64_t i = 0; i < 19; ++i) images.push_back(picture(40, 30, i));
  const auto encoder = slim();
  const Encoded all = encoder->encode(at::stack(images));
  ASSERT_EQ(all.features.sizes(), (std::vector<int64_t>{19, 128}));
  ASSERT_EQ(all.logits.size(0), 19);
  for (int64_t i = 0; i < 19; ++i)
    EXPECT_TRUE(at::allclose(encoder->features(images[static_cast<size_t>(i)].unsqueeze(0))[0], all.features[i], 1e-5, 1e-5));
}

TEST_F(Folders, NamesCarryPipelineAndTap) {
  add("a.png", 20, 20, 1), add("b.png", 30, 20, 2), add("c.png", 24, 20, 3);
  const auto named = [&](const EncoderOptions& options) {
    const auto encoder = slim(options);
    const CompareSide side = load_side(folder, *encoder);
    return compare(CompareMetric::fid, side, side, *encoder)["metrics"].items().begin().key();
  };
  EXPECT_THAT(named({}), testing::MatchesRegex("FD\\[inception@[0-9a-f]*,clean\\]"));
  EXPECT_THAT(named({.pipeline = "tf-legacy", .tap = "768"}),
              testing::MatchesRegex("FD\\[inception@[0-9a-f]*,tf-legacy,tap=768\\]"));
  EXPECT_EQ(slim({.tap = "spatial"})->features(picture(20, 20, 1).unsqueeze(0)).size(1), 7 * 17 * 17);
  EXPECT_THAT(message_of([] { slim({.pipeline = "fast"}); }), HasSubstr("torchmetrics"));
  EXPECT_THAT(message_of([] { slim({.tap = "1024"}); }), HasSubstr("2048"));
  EXPECT_THAT(message_of([] { load_image_encoder(kGolden / "vgg16", "vgg", at::kCPU, {.pipeline = "clean"}); }),
              HasSubstr("leave both unset"));
}

TEST_F(Folders, BrokenFilesAreNamedOrSkippedAndCounted) {
  const auto encoder = slim();
  add("a.png", 20, 20, 1), add("b.png", 30, 20, 2);
  write("empty.png", "");
  EXPECT_THAT(message_of([&] { load_side(folder, *encoder); }),
              testing::AllOf(HasSubstr("empty.png"), HasSubstr("empty")));
  std::filesystem::remove(folder / "empty.png");
  const std::string whole = read_text(add("torn.jpg", 40, 40, 3));
  write("torn.jpg", whole.substr(0, whole.size() / 3));
  EXPECT_THAT(message_of([&] { load_side(folder, *encoder); }), HasSubstr("torn.jpg"));
  EXPECT_EQ(load_side(folder, *encoder, {.skip_unreadable = true}).total.count(), 2);
}

TEST_F(Folders, TooFewImagesAreAnError) {
  const auto encoder = slim();
  EXPECT_THAT(message_of([&] { load_side(folder, *encoder); }), HasSubstr("no .png, .jpg, .jpeg or .webp files"));
  add("a.png", 20, 20, 1);
  EXPECT_THAT(message_of([&] { load_side(folder, *encoder); }), HasSubstr("at least 2"));
}

TEST_F(Folders, StatisticsAreOfAFolder) {
  const auto encoder = slim();
  add("a.png", 20, 20, 1), add("b.png", 30, 20, 2);
  const auto file = std::filesystem::path(folder.string() + ".npz");
  EXPECT_EQ(write_statistics(folder, file, *encoder)["n"].get<int64_t>(), 2);
  EXPECT_NEAR(compare(CompareMetric::fid, load_side(file, *encoder), load_side(folder, *encoder), *encoder)["metrics"]
                  .items()
                  .begin()
                  .value()["value"]
                  .get<double>(),
              0, 1e-6);
  EXPECT_THAT(message_of([&] { write_statistics(file, folder / "x.npz", *encoder); }),
              HasSubstr("images are read from a folder"));
  std::filesystem::remove(file);
}

TEST_F(Folders, UnequalNumbersAreWarnedOf) {
  const auto encoder = slim();
  add("a/1.png", 20, 20, 1), add("a/2.png", 30, 20, 2), add("a/3.png", 24, 20, 3);
  add("b/1.png", 20, 20, 4), add("b/2.png", 30, 20, 5);
  const CompareSide a = load_side(folder / "a", *encoder), b = load_side(folder / "b", *encoder);
  testing::internal::CaptureStderr();
  compare(CompareMetric::fid, a, b, *encoder);
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              testing::AllOf(HasSubstr("a has 3 images, "), HasSubstr("b has 2: distances carry a bias of about 1/N"),
                             HasSubstr("fewer images (2) than features (128)")));
}

TEST_F(Folders, FloatsAreRefusedWhateverTheirRange) {
  for (const char* pipeline : {"clean", "pytorch-fid", "tf-legacy", "torchmetrics"})
    EXPECT_THAT(message_of([&] { slim({.pipeline = pipeline})->features(at::rand({1, 3, 20, 20}) * 2 - 1); }),
                testing::AllOf(HasSubstr("must be uint8 in [0, 255], got Float"), HasSubstr("convert floats")));
}

TEST_F(Folders, FlatAndGreyImagesAreCountedNotDropped) {
  io::write_image(folder / "flat.png", at::full({3, 20, 20}, 0, at::kByte));
  io::write_image(folder / "grey.png", picture(20, 20, 1).narrow(0, 0, 1).contiguous());
  add("c.png", 20, 20, 5);
  int64_t rows = 0;
  const Extraction e = extract(*open_images(folder), *slim(), {}, [&](const Encoded& x) { rows += x.features.size(0); });
  EXPECT_EQ(rows, 3);
  EXPECT_EQ(e.constant, 1);
  EXPECT_EQ(e.grey, 1);
}

TEST_F(Folders, CaptionsMustNameImagesThatExist) {
  add("a.png", 20, 20, 1);
  class Clip : public TextImageEncoder {
    Tensor image_embeddings(const Tensor& x) const override { return unit(x.size(0)); }
    Tensor text_embeddings(const std::vector<std::string>& t) const override {
      return unit(static_cast<int64_t>(t.size()));
    }
    double logit_scale() const override { return 100; }
    int64_t truncated() const override { return 0; }
    EncoderIdentity identity() const override { return {"clip", std::string(64, 'c')}; }
    static Tensor unit(int64_t n) { return at::eye(4).narrow(0, 0, 1).expand({n, 4}); }
  } clip;
  const auto score = [&](const std::string& lines) {
    write("metadata.jsonl", lines);
    return compare_captions(folder, {}, clip, find_clip_score("hessel"));
  };
  const Json good = score("{\"file_name\": \"a.png\", \"text\": \"a\"}\n\n");
  EXPECT_NEAR(good["metrics"]["CLIPScore[clip@cccccccc,hessel]"]["value"].get<double>(), 2.5, 1e-6);
  EXPECT_THAT(message_of([&] {
                score("{\"file_name\": \"a.png\", \"text\": \"a\"}\n{\"file_name\": \"b.png\", \"text\": \"b\"}\n");
              }),
              testing::AllOf(HasSubstr("metadata.jsonl:2"), HasSubstr("there is no image"), HasSubstr("b.png")));
  EXPECT_THAT(message_of([&] { score("{\"file_name\": \"a.png\"}\n"); }), HasSubstr("metadata.jsonl:1"));
  EXPECT_THAT(message_of([] { find_clip_score("clip"); }), HasSubstr("torchmetrics"));
}

TEST_F(Folders, ATokenizerOfAnotherNetworkIsRefused) {
  for (const char* name : {"config.json", "model.safetensors"})
    std::filesystem::copy(kGolden / "clip_model" / name, folder / name);
  for (const char* name : {"vocab.json", "merges.txt", "tokenizer_config.json"})
    std::filesystem::copy(kGolden / "clip_tokenizer" / name, folder / name);
  EXPECT_THAT(message_of([&] { load_text_image_encoder(folder, "clip", at::kCPU); }),
              HasSubstr("the network reads 120 and 12"));
}

// Each definition by hand: cosines 0.5 and -0.25.
TEST(ClipScores, FiveDefinitions) {
  const Tensor cosines = at::tensor({0.5, -0.25}, at::kDouble);
  const auto value = [&](const char* name) { return clip_score(find_clip_score(name), cosines, 80).value; };
  EXPECT_NEAR(value("hessel"), 2.5 * 0.25, 1e-12);
  EXPECT_NEAR(value("torchmetrics"), 12.5, 1e-12);
  EXPECT_NEAR(value("taited"), 80 * 0.125, 1e-12);
  EXPECT_NEAR(value("gigagan"), 0.125, 1e-12);
  EXPECT_NEAR(value("mlperf"), 12.5, 1e-12);
  EXPECT_NEAR(clip_score(find_clip_score("torchmetrics"), -cosines, 80).value, 0, 1e-12);  // the mean is clamped
  EXPECT_NEAR(clip_score(find_clip_score("mlperf"), -cosines, 80).value, -12.5, 1e-12);    // here it is not
}

}  // namespace
}  // namespace fewstep::eval
