// The networks of evaluation beyond their golden files: sizes, other layouts of their files, what they refuse.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/json.h"
#include "src/io/safetensors.h"
#include "src/models/clip.h"
#include "src/models/dinov2.h"
#include "src/models/fid_inception.h"
#include "src/models/model.h"
#include "src/models/verify.h"
#include "src/models/vgg16.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "tests/support/message_of.h"

namespace fewstep::models {
namespace {

const std::filesystem::path kGolden = FEWSTEP_SOURCE_DIR "/tests/golden";

class Folder {
 public:
  explicit Folder(const char* golden) {
    std::filesystem::remove_all(path);
    std::filesystem::copy(kGolden / golden, path);
  }
  ~Folder() { std::filesystem::remove_all(path); }
  const std::filesystem::path path =
      std::filesystem::temp_directory_path() / fmt::format("fewstep-encoders-{}", ::getpid());
};

int64_t numbers(const nn::Module& module) {
  int64_t n = 0;
  for (const NamedTensor& t : module.state()) n += t.tensor.numel();
  return n;
}

TEST(FidInception, FullSizeHasTheEntriesOfThePublishedFile) {
  const nn::BuildScope meta(at::kMeta);
  const FidInception network({});
  EXPECT_EQ(network.state().size(), 566u);
  EXPECT_EQ(numbers(network), 23885486);
  EXPECT_EQ(network.width(InceptionDepth::pool3), 2048);
}

TEST(FidInception, FilesWithoutCountersOfBatchesLoad) {
  const Folder folder("fid_inception_slim16");
  TensorMap tensors;
  for (const auto& [name, t] : io::Safetensors(folder.path / "model.safetensors").all())
    if (!name.ends_with("num_batches_tracked")) tensors[name] = t.clone();
  EXPECT_EQ(tensors.size(), 472u);
  io::write_safetensors(folder.path / "model.safetensors", tensors);
  EXPECT_TRUE(verify_model(folder.path, {.all = true, .limit = {}}).passed);
  tensors.erase("Mixed_7c.branch_pool.bn.bias");
  io::write_safetensors(folder.path / "model.safetensors", tensors);
  EXPECT_THAT(message_of([&] { load_model(folder.path); }), testing::HasSubstr("Mixed_7c.branch_pool.bn.bias"));
}

TEST(FidInception, FoldedEqualsUnfoldedAndBatchesDoNotMatter) {
  const NoGrad no_grad;
  const auto module = load_model(kGolden / "fid_inception_slim16");
  auto& network = dynamic_cast<FidInception&>(*module);
  const Tensor x = at::arange(3 * 3 * 299 * 299).mul(0.37).sin().view({3, 3, 299, 299});
  const Tensor plain = network(x).pool3;
  network.prepare_inference();
  const Tensor folded = network(x).pool3;
  EXPECT_LT((plain - folded).abs().max().item<double>() / plain.square().mean().sqrt().item<double>(), 1e-5);
  EXPECT_LT((network(x.narrow(0, 1, 1)).pool3 - folded.narrow(0, 1, 1)).abs().max().item<double>(), 1e-5);
  const InceptionTaps early = network(x, InceptionDepth::pool2);
  EXPECT_TRUE(early.pool2.defined() && !early.mixed6e.defined() && !early.pool3.defined());
}

// The inception score's logits: with fc's bias they would be others.
TEST(FidInception, LogitsHaveNoBias) {
  const NoGrad no_grad;
  const auto module = load_model(kGolden / "fid_inception_slim16");
  auto& network = dynamic_cast<FidInception&>(*module);
  EXPECT_EQ(network.unbiased_logits(at::zeros({1, network.width(InceptionDepth::pool3)})).abs().max().item<double>(),
            0);
}

TEST(FidInception, RefusesOtherSizesAndDivisors) {
  const nn::BuildScope meta(at::kMeta);
  EXPECT_THAT(message_of([] {
                FidInception({.channel_divisor = 16})(at::zeros({1, 3, 256, 256}));
              }),
              testing::HasSubstr("[-1, 3, 299, 299]"));
  EXPECT_THAT(message_of([] {
                FidInceptionConfig::from_json({{"channel_divisor", 3}}, "here");
              }),
              testing::HasSubstr("1, 2, 4, 8 or 16"));
}

// Checkpoints on the hub write CLIPTextModel with the prefix "text_model."; transformers 5 writes it without.
TEST(ClipText, BothLayoutsOfFilesLoad) {
  const Folder folder("clip_text_encoder");
  std::filesystem::rename(folder.path / "model.hub_layout.safetensors", folder.path / "model.safetensors");
  EXPECT_TRUE(verify_model(folder.path, {.all = true, .limit = {}}).passed);
}

TEST(ClipText, FullSizesAreThoseOfStableDiffusionXl) {
  const nn::BuildScope meta(at::kMeta);
  ClipTextConfig small;
  small.hidden_size = 768, small.intermediate_size = 3072, small.num_attention_heads = 12;
  EXPECT_EQ(numbers(ClipTextModel(small)), 123060480);
  ClipTextConfig large;
  large.hidden_size = 1280, large.intermediate_size = 5120, large.num_attention_heads = 20,
  large.num_hidden_layers = 32;
  large.projection_dim = 1280, large.projection = true;
  EXPECT_EQ(numbers(ClipTextModel(large)), 694659840);
}

TEST(ClipText, LongTextsAndUnknownActivationsAreErrors) {
  const auto module = load_model(kGolden / "clip_text_encoder");
  EXPECT_THAT(message_of([&] {
                dynamic_cast<const ClipTextModel&> (*module)(at::zeros({1, 21}, at::kLong));
              }),
              testing::HasSubstr("texts of 21 tokens, the text encoder reads at most 20"));
  EXPECT_THAT(message_of([] {
                ClipTextConfig::from_json({{"hidden_act", "gelu_new"}}, "here");
              }),
              testing::HasSubstr("hidden_act in here"));
}

TEST(Dinov2, SidesMustBeMultiplesOfThePatch) {
  const auto module = load_model(kGolden / "dinov2");
  EXPECT_THAT(message_of([&] {
                dynamic_cast<const Dinov2Model&> (*module)(at::zeros({1, 3, 56, 57}));
              }),
              testing::HasSubstr("multiples of 14"));
}

// The giant model's SwiGLU: sizes of facebook/dinov2-giant, and one block computed by hand.
TEST(Dinov2, SwigluVariant) {
  Dinov2Config c;
  c.hidden_size = 1536, c.num_hidden_layers = 40, c.num_attention_heads = 24, c.use_swiglu_ffn = true;
  const nn::BuildScope meta(at::kMeta);
  EXPECT_EQ(numbers(Dinov2Model(c)), 1136480768);
}

TEST(Vgg16, FullSizeIsTorchvisions) {
  const nn::BuildScope meta(at::kMeta);
  EXPECT_EQ(numbers(Vgg16({})), 138357544);
}

}  // namespace
}  // namespace fewstep::models
