// Folders pair by pair, and images of one prompt.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "eval/diversity.h"
#include "eval/frechet.h"
#include "eval/image_pairs.h"
#include "src/base/error.h"
#include "src/base/files.h"
#include "src/io/image.h"
#include "src/tensor/ops.h"
#include "tests/support/message_of.h"

namespace fewstep::eval {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

class Pairs : public testing::Test {
 protected:
  const fs::path folder = fs::temp_directory_path() / fmt::format("fewstep-pairs-{}", ::getpid());
  const fs::path a = folder / "a", b = folder / "b";
  void SetUp() override { fs::remove_all(folder), make_directories(a), make_directories(b); }
  void TearDown() override { fs::remove_all(folder); }
  static Tensor picture(int64_t seed, int64_t height = 20, int64_t width = 24) {
    return at::arange(3 * height * width).mul(7 + seed).remainder(251).to(at::kByte).view({3, height, width});
  }
  static void add(const fs::path& file, const Tensor& image) {
    make_directories(file.parent_path());
    io::write_image(file, image);
  }
  static void list(const fs::path& in, const std::vector<std::pair<std::string, std::string>>& lines) {
    std::ofstream out(in / "metadata.jsonl");
    for (const auto& [file, text] : lines) out << Json{{"file_name", file}, {"text", text}}.dump() << "\n";
  }
  std::string problem(PairBy by = PairBy::file_name) const {
    return message_of<DataError>([&] { find_pairs(a, b, by); });
  }
};

TEST_F(Pairs, AreByRelativeNameWithoutExtension) {
  add(a / "x/1.png", picture(1)), add(a / "2.png", picture(2)), add(a / "x.1.png", picture(3));
  add(b / "x/1.webp", picture(4)), add(b / "2.JPG", picture(5)), add(b / "x.1.png", picture(3));
  const auto pairs = find_pairs(a, b);
  ASSERT_EQ(pairs.size(), 3u);
  std::map<std::string, fs::path> partner;
  for (const ImagePair& pair : pairs) partner[pair.name] = pair.b.lexically_relative(b);
  EXPECT_EQ(partner,
            (std::map<std::string, fs::path>{{"2.png", "2.JPG"}, {"x.1.png", "x.1.png"}, {"x/1.png", "x/1.webp"}}));
}

TEST_F(Pairs, NamesWhatDoesNotFit) {
  EXPECT_THAT(problem(), AllOf(HasSubstr(a.string()), HasSubstr("no .png, .jpg")));
  add(a / "1.png", picture(1)), add(a / "2.png", picture(2));
  EXPECT_THAT(problem(), AllOf(HasSubstr(b.string()), HasSubstr("no .png, .jpg")));
  add(b / "1.png", picture(1));
  EXPECT_THAT(problem(), AllOf(HasSubstr((a / "2.png").string()), HasSubstr("no partner"), HasSubstr("1 of 2")));
  add(b / "2.png", picture(2)), add(b / "3.png", picture(3));
  EXPECT_THAT(problem(), AllOf(HasSubstr((b / "3.png").string()), HasSubstr("no partner"), HasSubstr("1 of 3")));
  fs::remove(b / "3.png");
  add(b / "2.png", picture(2, 21, 22));
  EXPECT_THAT(problem(),
              AllOf(HasSubstr("2.png: 24 x 20 pixels"), HasSubstr("2.png: 22 x 21"), HasSubstr("1 of 2 pairs")));
  add(b / "2.jpg", picture(2));
  EXPECT_THAT(problem(), AllOf(HasSubstr("2.jpg"), HasSubstr("2.png"), HasSubstr("same name")));
  fs::remove(b / "2.jpg");
  std::ofstream(b / "2.png") << "no image";
  EXPECT_THAT(problem(), AllOf(HasSubstr((b / "2.png").string()), HasSubstr("not a PNG")));
  EXPECT_THAT(message_of<DataError>([&] { find_pairs(folder / "none", b); }), HasSubstr("no such folder"));
}

TEST_F(Pairs, AreByCaptionWhereAskedFor) {
  for (const char* name : {"1.png", "2.png", "3.png"}) add(a / name, picture(name[0]));
  for (const char* name : {"p.png", "q.png", "r.png"}) add(b / name, picture(name[0]));
  list(a, {{"1.png", "cat"}, {"2.png", "dog"}, {"3.png", "cat"}});
  list(b, {{"p.png", "dog"}, {"q.png", "cat"}, {"r.png", "cat"}});
  EXPECT_THAT(problem(), HasSubstr("no partner"));
  const auto pairs = find_pairs(a, b, PairBy::caption);
  ASSERT_EQ(pairs.size(), 3u);
  EXPECT_EQ(pairs[0].b.filename(), "q.png");
  EXPECT_EQ(pairs[1].b.filename(), "p.png");
  EXPECT_EQ(pairs[2].b.filename(), "r.png");
  list(b, {{"p.png", "dog"}, {"q.png", "cat"}, {"r.png", "dog"}});
  EXPECT_THAT(problem(PairBy::caption), AllOf(HasSubstr("3.png"), HasSubstr("'cat', image 2 has no partner")));
}

TEST_F(Pairs, SummaryHasMeansIntervalsAndTheWorst) {
  const Tensor image = picture(1, 24, 24);
  for (int64_t i = 0; i < 7; ++i) {
    add(a / fmt::format("{}.png", i), image);
    add(b / fmt::format("{}.png", i), (image.to(at::kInt) / (1 + i)).floor().to(at::kByte));  // darker and darker
  }
  const auto pairs = find_pairs(a, b);
  const PairScores scores = score_pairs(pairs, nullptr);
  EXPECT_TRUE(scores.perceptual.empty());
  const Json s = summarise_pairs(pairs, scores, nullptr);
  EXPECT_EQ(s["pairs"], 7);
  EXPECT_EQ(s["identical"], 1);
  EXPECT_EQ(s["worst_by"], "SSIM");
  ASSERT_EQ(s["worst"].size(), 5u);
  EXPECT_EQ(s["worst"][0]["name"], "6.png");
  EXPECT_EQ(s["worst"][4]["name"], "2.png");
  EXPECT_EQ(s["metrics"]["SSIM"]["n"], 7);
  EXPECT_EQ(s["metrics"]["PSNR"]["n"], 6);  // the equal pair's is infinite
  EXPECT_THAT(s["metrics"]["PSNR"]["note"].get<std::string>(), HasSubstr("1 of 7 pairs are equal"));
  double mean = 0;
  for (double v : scores.ssim) mean += v / 7;
  double squares = 0;
  for (double v : scores.ssim) squares += (v - mean) * (v - mean);
  EXPECT_NEAR(s["metrics"]["SSIM"]["value"].get<double>(), mean, 1e-12);
  EXPECT_NEAR(s["metrics"]["SSIM"]["ci95"].get<double>(), 2.44691 * std::sqrt(squares / 6 / 7), 1e-9);
  const PerceptualDistance vgg(FEWSTEP_SOURCE_DIR "/tests/golden/vgg16", "slim", at::kCPU);
  const Json with = summarise_pairs(pairs, score_pairs(pairs, &vgg), &vgg, 2);
  EXPECT_EQ(with["worst_by"], vgg.metric());
  EXPECT_EQ(with["metrics"][vgg.metric()]["n"], 7);
  ASSERT_EQ(with["worst"].size(), 2u);
  EXPECT_GE(with["worst"][0][vgg.metric()].get<double>(), with["worst"][1][vgg.metric()].get<double>());
}

TEST_F(Pairs, ImagesBelowTheWindowAreNamed) {
  add(a / "1.png", picture(1, 10, 30)), add(b / "1.png", picture(2, 10, 30));
  EXPECT_THAT(message_of<DataError>([&] { score_pairs(find_pairs(a, b), nullptr); }),
              AllOf(HasSubstr("1.png"), HasSubstr("30 x 10")));
}

// Angles of 0, 60 and 90 degrees.
TEST(Diversity, MeanOverPromptsOfTheMeanOverPairs) {
  const double h = 0.5, r = std::sqrt(0.75);
  const Tensor x = at::tensor({1.0, 0.0, 2.0, 0.0, h, r, 1.0, 0.0, 0.0, 3.0, 5.0, 5.0}, at::kDouble).view({6, 2});
  // Group 4: rows 0, 1, 2: distances 0, 1/2, 1/2. Group 9: rows 3, 4: distance 1. Row 5 alone.
  const Diversity d = intra_prompt_diversity(x, {4, 4, 4, 9, 9, 7});
  EXPECT_NEAR(d.distance.value, (1.0 / 3 + 1) / 2, 1e-12);
  EXPECT_NEAR(d.distance.ci95, 12.7062 * (2.0 / 3) / 2, 1e-9);  // half the difference is the standard error
  EXPECT_EQ(d.prompts, 2);
  EXPECT_EQ(d.distance.n, 2);
  EXPECT_EQ(d.singles, 1);
  EXPECT_EQ(d.images, 5);
  EXPECT_THAT(message_of<ConfigError>([&] {
                intra_prompt_diversity(x, {0, 1, 2, 3, 4, 5});
              }),
              HasSubstr("none of 6 prompts has two images"));
  Tensor bad = x.clone();
  bad[3].zero_();
  EXPECT_THAT(message_of<NumericError>([&] { intra_prompt_diversity(bad, {4, 4, 4, 9, 9, 7}); }), HasSubstr("image 3"));
  bad[1][0] = std::nan("");
  EXPECT_THAT(message_of<NumericError>([&] { intra_prompt_diversity(bad, {4, 4, 4, 9, 9, 7}); }), HasSubstr("image 1"));
}

TEST_F(Pairs, DiversityOfAFolderGroupsByCaption) {
  class Means : public ImageEncoder {
    Encoded encode(const Tensor& x) const override { return {x.to(at::kFloat).mean({2, 3}), {}}; }
    EncoderIdentity identity() const override { return {"means", std::string(64, 'e')}; }
  } encoder;
  const auto colour = [](int64_t r, int64_t g) {
    return at::tensor({r, g, int64_t{0}}, at::kByte).view({3, 1, 1}).expand({3, 16, 16}).contiguous();
  };
  add(a / "1.png", colour(200, 0)), add(a / "2.png", colour(100, 0)), add(a / "3.png", colour(0, 90));
  add(a / "4.png", colour(10, 10));
  list(a, {{"1.png", "red"}, {"2.png", "red"}, {"3.png", "red"}, {"4.png", "other"}});
  const Json j = folder_diversity(a, encoder);
  EXPECT_NEAR(j["metrics"]["diversity[means@eeeeeeee]"]["value"].get<double>(), 2.0 / 3, 1e-6);
  EXPECT_EQ(j["prompts"], 1);
  EXPECT_EQ(j["prompts_of_one_image"], 1);
  list(a, {{"1.png", "red"}, {"2.png", "green"}});
  EXPECT_THAT(message_of<ConfigError>([&] { folder_diversity(a, encoder); }),
              HasSubstr("none of 2 prompts has two images"));
  fs::remove(a / "metadata.jsonl");
  EXPECT_THAT(message_of<DataError>([&] { folder_diversity(a, encoder); }), HasSubstr("metadata.jsonl"));
}

}  // namespace
}  // namespace fewstep::eval
