// PSNR, SSIM and LPIPS against the packages that define them in practice (tests/golden/pairs, tools/golden/pairs.py).
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <regex>

#include "eval/pair_metrics.h"
#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/json.h"
#include "src/io/safetensors.h"
#include "src/tensor/ops.h"
#include "tests/support/message_of.h"

namespace fewstep::eval {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::MatchesRegex;
const fs::path kGolden = FEWSTEP_SOURCE_DIR "/tests/golden";
const std::string kVgg = "397923af" + std::string(56, '0');  // the file's name has eight digits
constexpr const char* kLinear = "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868";

class PairGolden : public testing::Test {
 protected:
  const TensorMap io = io::Safetensors(kGolden / "pairs/io.safetensors").all();
  const Json values = read_json(kGolden / "pairs/expected.json").at("values");
  static double value(const Json& pair, const char* key) { return pair.at(key).get<double>(); }
};

TEST_F(PairGolden, PsnrAndSsim) {
  EXPECT_EQ(values.size(), 4u);
  for (const auto& [name, pair] : values.items()) {
    const Tensor a = io.at("a." + name), b = io.at("b." + name);
    EXPECT_NEAR(psnr(a, b), value(pair, "psnr"), 1e-9) << name;
    EXPECT_NEAR(ssim(a, b), value(pair, "ssim"), 1e-6) << name;
    EXPECT_NEAR(ssim(a, b), value(pair, "ssim_torchmetrics_inside"), 1e-6) << name;
    EXPECT_GT(std::abs(ssim(a, b) - value(pair, "ssim_torchmetrics")), 1e-3) << name;  // its mean has the borders
    EXPECT_NEAR(ssim(a, b), ssim(b, a), 1e-12) << name;
  }
}

TEST_F(PairGolden, Lpips) {
  const PerceptualDistance weighted(kGolden / "vgg16", "slim", at::kCPU, kGolden / "pairs/lpips"),
      plain(kGolden / "vgg16", "slim", at::kCPU);
  EXPECT_TRUE(weighted.weighted());
  EXPECT_FALSE(plain.weighted());
  for (const auto& [name, pair] : values.items()) {
    const Tensor a = io.at("a." + name).unsqueeze(0), b = io.at("b." + name).unsqueeze(0);
    EXPECT_NEAR(weighted(a, b).item<double>(), value(pair, "lpips"), 1e-5 * value(pair, "lpips")) << name;
    EXPECT_NEAR(plain(a, b).item<double>(), value(pair, "lpips_baseline"), 1e-5 * value(pair, "lpips_baseline")) << name;
    EXPECT_EQ(weighted(a, a).item<double>(), 0) << name;
  }
  // Pairs of a batch do not see each other.
  const Tensor a = io.at("a.noise"), b = io.at("b.noise");
  const Tensor both = weighted(at::stack({a, b}), at::stack({b, b}));
  EXPECT_NEAR(both[0].item<double>(), value(values.at("noise"), "lpips"), 1e-5);
  EXPECT_EQ(both[1].item<double>(), 0);
}

TEST(PairMetrics, EndsOfTheScale) {
  const Tensor black = at::zeros({3, 16, 16}, at::kByte), white = at::full({3, 16, 16}, 255, at::kByte);
  EXPECT_TRUE(std::isinf(psnr(black, black)));
  EXPECT_NEAR(psnr(black, white), 0, 1e-12);
  EXPECT_NEAR(ssim(black, black), 1, 1e-12);
  EXPECT_NEAR(ssim(black, white), 0.01 * 0.01 / (1 + 0.01 * 0.01), 1e-9);  // no structure: C1 / (255^2 + C1)
}

TEST(PairMetrics, RefusesWhatCannotBeCompared) {
  const auto image = [](int64_t h, int64_t w) { return at::zeros({3, h, w}, at::kByte); };
  EXPECT_THAT(message_of<DataError>([&] { psnr(image(8, 8), image(8, 9)); }), HasSubstr("[3, 8, 9]"));
  EXPECT_THAT(message_of<DataError>([&] { ssim(image(10, 40), image(10, 40)); }), HasSubstr("40 x 10"));
  const PerceptualDistance distance(kGolden / "vgg16", "slim", at::kCPU);
  EXPECT_THAT(message_of<DataError>([&] {
                distance(at::zeros({1, 3, 15, 40}, at::kByte), at::zeros({1, 3, 15, 40}, at::kByte));
              }),
              HasSubstr("16 pixels or more"));
}

// VGG16 and linear layers whose files say which download they come from.
class PerceptualNames : public testing::Test {
 protected:
  const fs::path folder = fs::temp_directory_path() / fmt::format("fewstep-perceptual-{}", ::getpid());
  void SetUp() override { fs::remove_all(folder), make_directories(folder / "lpips"); }
  void TearDown() override { fs::remove_all(folder); }
  void write(const fs::path& to, const fs::path& from, const std::string& source) const {
    fs::copy_file(from / "config.json", to / "config.json", fs::copy_options::overwrite_existing);
    std::map<std::string, std::string> metadata;
    if (!source.empty()) metadata["source_sha256"] = source;
    io::write_safetensors(to / "model.safetensors", io::Safetensors(from / "model.safetensors").all(), metadata);
  }
  std::string named(const std::string& vgg, const std::string& linear) const {
    write(folder, kGolden / "vgg16", vgg), write(folder / "lpips", kGolden / "pairs/lpips", linear);
    return PerceptualDistance(folder, "vgg", at::kCPU).metric();
  }
};

TEST_F(PerceptualNames, LpipsNeedsBothPublishedHalves) {
  EXPECT_EQ(named(kVgg, kLinear), "LPIPS[vgg16]");
  const char* own = "perceptual\\[vgg@[0-9a-f]{8},linear=[0-9a-f]{8}\\]";
  const auto matches = [&](const std::string& name) { return std::regex_match(name, std::regex(own)); };
  EXPECT_TRUE(matches(named(kVgg, ""))) << named(kVgg, "");
  EXPECT_TRUE(matches(named("", kLinear))) << named("", kLinear);
  EXPECT_TRUE(matches(named(kVgg, kVgg)));
  named(kVgg, kLinear);
  fs::remove_all(folder / "lpips");
  const std::string unweighted = PerceptualDistance(folder, "vgg", at::kCPU).metric();
  EXPECT_TRUE(std::regex_match(unweighted, std::regex("perceptual\\[vgg@[0-9a-f]{8}\\]"))) << unweighted;
}

TEST_F(PerceptualNames, LinearLayersOfAnotherNetworkAreRefused) {
  named("", "");
  TensorMap linear = io::Safetensors(kGolden / "pairs/lpips/model.safetensors").all();
  const auto problem = [&](const TensorMap& tensors) {
    io::write_safetensors(folder / "lpips/model.safetensors", tensors);
    return message_of<DataError>([&] { PerceptualDistance(folder, "vgg", at::kCPU); });
  };
  TensorMap changed = linear;
  changed["lin2.weight"] = at::ones({7});
  EXPECT_THAT(problem(changed), testing::AllOf(HasSubstr("lin2.weight has 7 weights"), HasSubstr("8 channels")));
  changed = linear, changed["lin0.weight"] = -linear.at("lin0.weight");
  EXPECT_THAT(problem(changed), HasSubstr("below 0"));
  changed = linear, changed.erase("lin4.weight");
  EXPECT_THAT(problem(changed), HasSubstr("no tensor lin4.weight"));
  EXPECT_THAT(message_of<ConfigError>([] { PerceptualDistance(kGolden / "dinov2", "x", at::kCPU); }),
              HasSubstr("torchvision VGG16"));
}

TEST(PerceptualGate, LpipsIsAnEstablishedName) {
  const EncoderIdentity vgg{.name = "vgg", .sha256 = std::string(64, 'a'), .source_sha256 = kVgg};
  const EncoderIdentity other{.name = "vgg", .sha256 = std::string(64, 'a')};
  EXPECT_NO_THROW(check_metric_name("LPIPS[vgg16]", std::vector{vgg}));
  EXPECT_THROW(check_metric_name("LPIPS[vgg16]", std::vector{other}), ConfigError);
  EXPECT_THROW(check_metric_name("perceptual", std::vector{vgg}), ConfigError);
  EXPECT_NO_THROW(check_metric_name("perceptual[vgg@aaaaaaaa]", std::vector{other}));
}

}  // namespace
}  // namespace fewstep::eval
