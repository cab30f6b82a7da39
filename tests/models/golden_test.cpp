// Golden folders of tests/golden (made by tools/golden/*.py with PyTorch, transformers, torchvision, pytorch-fid), and ten losses of training.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/text.h"
#include "src/io/safetensors.h"
#include "src/models/llama.h"
#include "src/models/model.h"
#include "src/models/verify.h"
#include "src/tensor/optim.h"
#include "src/tensor/ops.h"

namespace fewstep {
namespace {

const std::filesystem::path kGolden = FEWSTEP_SOURCE_DIR "/tests/golden";

class GoldenFolder : public testing::TestWithParam<const char*> {};

TEST_P(GoldenFolder, EveryTensorAgreesWithPyTorch) {
  const models::VerifyReport report = models::verify_model(kGolden / GetParam(), {.all = true, .limit = {}});
  EXPECT_TRUE(report.passed) << models::to_text(report);
  EXPECT_GE(report.lines.size(), 4u);
}
INSTANTIATE_TEST_SUITE_P(Models, GoldenFolder, testing::Values("llama", "vq_model", "autoencoder_kl", "unet2d", "unet2d_conv", "clip_model", "clip_text_encoder", "clip_text_encoder_2", "dinov2",
                                                                "feature_discriminator", "fid_inception_slim16", "vgg16", "clip_tokenizer"));

// A copy of the golden folder whose expectations or weights a test may spoil.
struct SpoiltCopy {
  std::filesystem::path folder = std::filesystem::temp_directory_path() / fmt::format("fewstep-golden-{}", ::getpid());
  TensorMap io;
  SpoiltCopy() {
    std::filesystem::remove_all(folder);
    std::filesystem::copy(kGolden / "llama", folder);
    for (auto& [name, t] : io::Safetensors(kGolden / "llama" / "io.safetensors").all()) io[name] = t.clone();
  }
  ~SpoiltCopy() { std::filesystem::remove_all(folder); }
  models::VerifyReport verify(const models::VerifyOptions& options) {
    io::write_safetensors(folder / "io.safetensors", io);
    return models::verify_model(folder, options);
  }
};

TEST(Verify, FailsOnAWrongValueAndNamesIt) {
  SpoiltCopy copy;
  copy.io["expected.logits"].index({0, 3, 5}) += 0.01;
  const auto report = copy.verify({});
  EXPECT_FALSE(report.passed);
  for (const auto& line : report.lines) EXPECT_EQ(line.verdict == models::Verdict::fail, line.name == "logits") << line.name;
  EXPECT_TRUE(copy.verify({.all = false, .limit = 0.1}).passed);
}

TEST(Verify, WhatIsNotProducedFailsOnlyWithAll) {
  SpoiltCopy copy;
  copy.io["expected.attention_map"] = at::ones({2});
  copy.io["expected.top_gap"] = at::ones({2});  // a diagnostic: not checked
  EXPECT_TRUE(copy.verify({}).passed);
  const auto report = copy.verify({.all = true, .limit = {}});
  EXPECT_FALSE(report.passed);
  EXPECT_THAT(models::to_text(report), testing::HasSubstr("not produced"));
}

TEST(Verify, LimitsDependOnTheKind) {
  const Tensor one = at::ones({4});
  EXPECT_EQ(models::compare("logits", one, one + 2e-4).verdict, models::Verdict::fail);
  EXPECT_EQ(models::compare("grad.w", one, one + 2e-4).verdict, models::Verdict::ok);
  EXPECT_EQ(models::compare("logits", one, one * NAN).verdict, models::Verdict::fail);
  EXPECT_EQ(models::compare("logits", one, at::ones({5})).verdict, models::Verdict::fail);
  EXPECT_EQ(models::compare("ids", at::arange(4), at::arange(4)).verdict, models::Verdict::ok);
  EXPECT_EQ(models::compare("ids", at::arange(4), at::arange(4) + 1, 10.0).verdict, models::Verdict::fail);
}

// Ten AdamW steps on the golden batch: the settings are those of tools/golden/llama.py.
std::vector<double> ten_losses() {
  const auto module = models::load_model(kGolden / "llama");
  auto& model = dynamic_cast<models::LlamaForCausalLM&>(*module);
  OptimizerConfig c;
  c.lr = 3e-3, c.beta1 = 0.9, c.beta2 = 0.95, c.eps = 1e-8, c.weight_decay = 0.1, c.clip_norm = 1.0;
  AdamW optimizer(model.parameters(), c);
  const Tensor ids = io::Safetensors(kGolden / "llama" / "io.safetensors").get("input.input_ids");
  const int64_t L = ids.size(1);
  std::vector<double> losses;
  for (int step = 0; step < 10; ++step) {
    optimizer.zero_grad();
    const Tensor hidden = model.hidden(model.embed(ids));
    const Tensor loss = model.token_loss(hidden.narrow(1, 0, L - 1), ids.narrow(1, 1, L - 1)).mean();
    loss.backward();
    optimizer.step(c.lr, optimizer.grad_norm());
    losses.push_back(loss.item<double>());
  }
  return losses;
}

std::vector<double> read_losses(const std::filesystem::path& path) {
  std::vector<double> out;
  for (const std::string& line : split(read_text(path), '\n'))
    if (!line.empty()) out.push_back(std::stod(line));
  return out;
}

TEST(TenLosses, AgreeWithPyTorch) {
  const auto expected = read_losses(kGolden / "llama" / "losses.txt");
  const auto actual = ten_losses();
  ASSERT_EQ(expected.size(), actual.size());
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(actual[i], expected[i], 1e-5 * expected[i]) << "step " << i;
}

// Our own numbers, tighter: a change of the arithmetic shows here first. After an intended one, write the file anew with
// FEWSTEP_UPDATE_GOLDEN=1 and say why in the commit. CPUs and thread counts round differently in the last digits.
TEST(TenLosses, AreWhatTheyWere) {
  const auto path = kGolden / "llama" / "losses_fewstep.txt";
  const auto actual = ten_losses();
  if (std::getenv("FEWSTEP_UPDATE_GOLDEN")) {
    std::ofstream file(path);
    for (const double loss : actual) file << fmt::format("{:.9f}\n", loss);
  }
  const auto expected = read_losses(path);
  ASSERT_EQ(expected.size(), actual.size());
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(actual[i], expected[i], 1e-6 * expected[i]) << "step " << i;
  EXPECT_EQ(actual, ten_losses()) << "two runs of one binary must agree bit for bit";
}

}  // namespace
}  // namespace fewstep
