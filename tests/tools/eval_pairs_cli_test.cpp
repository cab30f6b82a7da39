// `fewstep eval pairs|diversity|patch-fid` and `fewstep data info` of image files, as a user meets them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/json.h"
#include "src/base/text.h"
#include "src/io/image.h"
#include "src/tensor/ops.h"
#include "tests/support/process.h"

namespace fewstep {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using testing::Finished;
using ::testing::HasSubstr;
using ::testing::Not;

class EvalPairsCli : public ::testing::Test {
 protected:
  const fs::path folder = fs::temp_directory_path() / fmt::format("fewstep-eval-pairs-cli-{}", ::getpid());
  const std::string golden = FEWSTEP_SOURCE_DIR "/tests/golden";
  void SetUp() override {
    fs::remove_all(folder);
    make_directories(folder / "a"), make_directories(folder / "b");
    std::ofstream a(folder / "a/metadata.jsonl");
    for (int64_t i = 0; i < 6; ++i) {
      const Tensor image = at::arange(3 * 20 * 20).mul(7 + i).remainder(251).to(at::kByte).view({3, 20, 20});
      const std::string name = fmt::format("{}.png", i);
      io::write_image(folder / "a" / name, image);
      io::write_image(folder / "b" / name, image.bitwise_or(static_cast<int64_t>(1) << (2 + i % 5)));
      a << Json{{"file_name", name}, {"text", i < 3 ? "cat" : "dog"}}.dump() << "\n";
    }
  }
  void TearDown() override { fs::remove_all(folder); }
  Finished run(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), FEWSTEP_BINARY);
    return testing::Child(arguments, folder).wait();
  }
  std::string a() const { return (folder / "a").string(); }
  std::string b() const { return (folder / "b").string(); }
};

TEST_F(EvalPairsCli, Pairs) {
  const Finished plain = run({"eval", "pairs", a(), b()});
  EXPECT_EQ(plain.code, 0) << plain.output;
  EXPECT_THAT(plain.output, AllOf(HasSubstr("PSNR\t"), HasSubstr("SSIM\t"), HasSubstr("worst of 6 pairs by SSIM\n  ")));
  const Finished json = run({"--log", "error", "eval", "pairs", a(), b(), "--encoder", golden + "/vgg16", "--linear",
                             golden + "/pairs/lpips", "--name", "slim", "--json"});
  ASSERT_EQ(json.code, 0) << json.output;
  const Json result = Json::parse(json.output);
  EXPECT_EQ(result["metrics"].size(), 3u);
  EXPECT_THAT(result["worst_by"].get<std::string>(),
              ::testing::MatchesRegex("perceptual.slim@[0-9a-f]*,linear=[0-9a-f]*."));
  EXPECT_EQ(result["worst"].size(), 5u);
}

TEST_F(EvalPairsCli, PairsThatDoNotFitAreFileErrors) {
  fs::remove(folder / "b/4.png");
  const Finished r = run({"eval", "pairs", a(), b()});
  EXPECT_EQ(r.code, 3);
  EXPECT_THAT(r.output, AllOf(HasSubstr("a/4.png"), HasSubstr("no partner")));
  EXPECT_EQ(run({"eval", "pairs", a(), b(), "--linear", "x"}).code, 2);
}

TEST_F(EvalPairsCli, Diversity) {
  const Finished r = run({"eval", "diversity", a(), "--encoder", golden + "/vgg16", "--name", "slim"});
  EXPECT_EQ(r.code, 0) << r.output;
  EXPECT_THAT(r.output, AllOf(HasSubstr("diversity[slim@"), HasSubstr("2 prompts of 6 images")));
  EXPECT_EQ(run({"eval", "diversity", b(), "--encoder", golden + "/vgg16"}).code, 3);  // no metadata.jsonl
}

TEST_F(EvalPairsCli, PatchFid) {
  const std::vector<std::string> command = {"eval",      "patch-fid",       a(),      b(),
                                            "--encoder", golden + "/vgg16", "--name", "slim"};
  const Finished small = run(command);
  EXPECT_EQ(small.code, 3);
  EXPECT_THAT(small.output, HasSubstr("6 of 6 images have a side below 64, the first is"));
  auto grid = command;
  grid.insert(grid.end(), {"--grid", "--side", "10"});
  const Finished r = run(grid);
  EXPECT_EQ(r.code, 0) << r.output;
  EXPECT_THAT(r.output, AllOf(HasSubstr("patch_FD[slim@"), HasSubstr(",grid=10]"), HasSubstr("24 patches of 6 images"),
                              HasSubstr("resized to the 64 x 64")));
  auto side = command;
  side.insert(side.end(), {"--side", "10"});
  EXPECT_EQ(run(side).code, 2);
}

TEST_F(EvalPairsCli, DataInfoReadsHeadersOnly) {
  io::write_image(folder / "a/6.jpg", at::zeros({3, 300, 600}, at::kByte));
  // The header is whole, the pixels are not: info does not decode.
  const std::string bytes = read_text(folder / "a/6.jpg");
  std::ofstream(folder / "a/6.jpg", std::ios::binary) << bytes.substr(0, bytes.size() - 200);
  std::ofstream(folder / "a/metadata.jsonl", std::ios::app) << "{\"file_name\": \"6.jpg\", \"text\": \"a wide one\"}\n";
  const std::vector<std::string> how = {"--kind", "image_folder", "folder=" + a(), "heldout=0", "test=0"};
  std::vector<std::string> info = {"data", "info"}, verify = {"data", "verify"};
  info.insert(info.end(), how.begin(), how.end()), verify.insert(verify.end(), how.begin(), how.end());
  const Finished r = run(info);
  EXPECT_EQ(r.code, 0) << r.output;
  EXPECT_THAT(r.output, AllOf(HasSubstr("samples      7"), HasSubstr("  0 - 63               6   85.7 %  ####"),
                              HasSubstr("  256 - 383            1   14.3 %  ##"), HasSubstr("  2:1 "),
                              HasSubstr("  256 pixels           6   85.7 %"), HasSubstr("3 distinct, 0 empty")));
  EXPECT_EQ(run(verify).code, 3);
}

}  // namespace
}  // namespace fewstep
