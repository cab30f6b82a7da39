// Each named image pipeline against the package it is named after (tests/golden/preprocessing,
// tools/golden/preprocessing.py).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "eval/preprocessing.h"
#include "src/base/error.h"
#include "src/base/text.h"
#include "src/io/safetensors.h"
#include "src/tensor/ops.h"
#include "tests/support/message_of.h"

namespace fewstep::eval {
namespace {

// A thousandth of a grey level, in the units of the pipeline's output.
double limit_of(const std::string& pipeline) {
  constexpr double kGreyLevel = 1e-3;
  if (pipeline == "vgg") return kGreyLevel / (255 * 0.224);
  if (pipeline == "dinov2") return kGreyLevel / (255 * 0.224);
  if (pipeline.starts_with("clip")) return kGreyLevel / (255 * 0.26);
  if (pipeline == "lanczos") return 0;
  return kGreyLevel / 128;
}

Tensor apply(const std::string& pipeline, const Tensor& image, int64_t side) {
  if (pipeline == "vgg") return vgg_input(image.unsqueeze(0), side)[0];
  if (pipeline == "dinov2") return dinov2_input(image.unsqueeze(0), side)[0];
  if (pipeline == "clip-torchvision") return clip_input(image, side, ClipCrop::torchvision);
  if (pipeline == "clip-transformers") return clip_input(image, side, ClipCrop::transformers);
  if (pipeline == "clip-square_first") return clip_input(image, side, ClipCrop::square_first);
  if (pipeline == "lanczos") return crop_and_resize_lanczos(image, side);
  return find_inception_pipeline(pipeline).apply(image.unsqueeze(0), side)[0];
}

TEST(Preprocessing, EveryPipelineEqualsItsPackage) {
  const io::Safetensors file(FEWSTEP_SOURCE_DIR "/tests/golden/preprocessing/io.safetensors");
  const TensorMap tensors = file.all();
  std::map<std::string, double> worst;
  for (const auto& [name, expected] : tensors) {
    const auto parts = split(name, '.');  // expected.PIPELINE.IMAGE.SIDE
    if (parts[0] != "expected") continue;
    const Tensor actual = apply(parts[1], tensors.at("input." + parts[2]), std::stoll(parts[3]));
    ASSERT_EQ(actual.sizes(), expected.sizes()) << name;
    const double difference = (actual.to(at::kDouble) - expected.to(at::kDouble)).abs().max().item<double>();
    EXPECT_LE(difference, limit_of(parts[1])) << name;
    worst[parts[1]] = std::max(worst[parts[1]], difference);
  }
  EXPECT_EQ(worst.size(), 10u);
}

// The four pipelines are not the same: were one called for another, the test above would have to fail.
TEST(Preprocessing, PipelinesDiffer) {
  const Tensor image = io::Safetensors(FEWSTEP_SOURCE_DIR "/tests/golden/preprocessing/io.safetensors")
                           .all()
                           .at("input.wide")
                           .unsqueeze(0);
  const auto all = inception_pipelines();
  ASSERT_EQ(all.size(), 4u);
  for (size_t i = 0; i < all.size(); ++i)
    for (size_t j = 0; j < i; ++j)
      EXPECT_GT((all[i].apply(image, 20) - all[j].apply(image, 20)).abs().max().item<double>(), 0.5 / 128)
          << all[i].name << " " << all[j].name;
}

// At the network's own size nothing is resized; the two value maps differ by up to 1/128.
TEST(Preprocessing, NoResizeAtTheSameSize) {
  const Tensor image = at::arange(3 * 16 * 16).remainder(256).to(at::kByte).view({1, 3, 16, 16});
  const Tensor minus128 = (image.to(at::kFloat) - 128) / 128;
  for (const char* name : {"clean", "tf-legacy", "torchmetrics"})
    EXPECT_LT((find_inception_pipeline(name).apply(image, 16) - minus128).abs().max().item<double>(), 1e-6) << name;
  const Tensor other = find_inception_pipeline("pytorch-fid").apply(image, 16);
  EXPECT_NEAR((other - minus128).max().item<double>(), 1.0 / 128, 1e-6);
}

TEST(Preprocessing, FloatsAndUnknownNamesAreErrors) {
  EXPECT_THAT(message_of([] {
                find_inception_pipeline("clean").apply(at::rand({1, 3, 8, 8}) * 2 - 1, 8);
              }),
              testing::HasSubstr("images for an encoder must be uint8 in [0, 255], got Float"));
  EXPECT_THAT(message_of([] { find_inception_pipeline("cleen"); }),
              testing::AllOf(testing::HasSubstr("clean"), testing::HasSubstr("tf-legacy")));
}

}  // namespace
}  // namespace fewstep::eval
