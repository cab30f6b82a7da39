// Tiny SDXL pipelines of diffusers (tools/golden/sdxl_pipeline.py): tensors of `fewstep model verify`, and whole runs
// from prompt to latents through the public interface, from the noise that both sides draw for (seed, id).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "src/base/json.h"
#include "src/io/image.h"
#include "src/io/safetensors.h"
#include "src/pipelines/diffusion_pipeline.h"
#include "src/pipelines/verify_pipeline.h"
#include "src/tensor/ops.h"

namespace fewstep::pipelines {
namespace {

const std::filesystem::path kBase = FEWSTEP_SOURCE_DIR "/tests/golden/sdxl_pipeline",
                            kRefiner = FEWSTEP_SOURCE_DIR "/tests/golden/sdxl_refiner";

double max_over_rms(const Tensor& expected, const Tensor& actual) {
  EXPECT_EQ(expected.sizes(), actual.sizes());
  return ((expected - actual).abs().max() / expected.square().mean().sqrt()).item<double>();
}

class EndToEnd : public ::testing::Test {
 protected:
  EndToEnd() : pipeline(kBase, at::kCPU), expected(io::Safetensors(kBase / "end_to_end.safetensors").all()) {
    const Json facts = read_json(kBase / "end_to_end.json");
    prompts = facts["prompts"].get<std::vector<std::string>>(), ids = facts["ids"].get<std::vector<int64_t>>();
    seed = facts["seed"].get<uint64_t>();
    options.diffusion.steps = facts["steps"].get<int64_t>(), options.guidance = facts["guidance"].get<double>();
  }
  Generated run() { return pipeline.generate(prompts, seed, ids, options); }

  DiffusionPipeline pipeline;
  TensorMap expected;
  std::vector<std::string> prompts;
  std::vector<int64_t> ids;
  uint64_t seed = 0;
  GenerateOptions options;
};

TEST(PipelineGolden, VerifiesBaseAndRefiner) {
  for (const auto& folder : {kBase, kRefiner}) {
    const models::VerifyReport report = verify_pipeline(folder, {.all = true, .limit = {}});
    EXPECT_TRUE(report.passed) << folder << "\n" << models::to_text(report);
    EXPECT_EQ(report.lines.size(), 4u);
  }
}

TEST_F(EndToEnd, NoiseIsThatOfAnIndependentImplementation) {
  const Tensor noise = initial_noise(at::tensor(ids, at::kLong), {4, 8, 8}, seed);
  EXPECT_LT((noise - expected["noise"]).abs().max().item<double>(), 1e-6);
}

TEST_F(EndToEnd, TextToImage) {
  const Generated made = run();
  EXPECT_LT(max_over_rms(expected["text_to_image"], made.latents), 1e-4);
  const Tensor pixels = io::to_bytes(expected["pixels"]);
  EXPECT_LE((pixels.to(at::kInt) - made.images.to(at::kInt)).abs().max().item<int64_t>(), 1);
  EXPECT_EQ(made.steps, 10);
  EXPECT_EQ(made.nfe, 20);
}

TEST_F(EndToEnd, SizesCropNegativePromptAndRescale) {
  auto& o = options.diffusion;
  o.width = 32, o.original_size = {40, 50}, o.crop = {3, 5}, o.target_size = {32, 64};
  o.negative_prompt = "small birds", o.guidance_rescale = 0.7;
  EXPECT_LT(max_over_rms(expected["micro"], run().latents), 1e-4);
  o.crop = {5, 3};
  EXPECT_GT(max_over_rms(expected["micro"], run().latents), 1e-3);  // the corner matters, and its order
}

TEST_F(EndToEnd, RefinerTakesOver) {
  options.diffusion.refiner = kRefiner.string();
  const Generated made = run();
  EXPECT_LT(max_over_rms(expected["base_and_refiner"], made.latents), 1e-4);
  EXPECT_GT(max_over_rms(expected["text_to_image"], made.latents), 1e-2);  // and is another network
  EXPECT_EQ(made.steps, 10);
  EXPECT_EQ(made.nfe, 20);
}

TEST_F(EndToEnd, ImageToImage) {
  options.diffusion.init_image = (kBase / "init.png").string(), options.diffusion.strength = 0.5;
  const Generated made = run();
  EXPECT_LT(max_over_rms(expected["image_to_image"], made.latents), 1e-4);
  EXPECT_EQ(made.steps, 5);
}

}  // namespace
}  // namespace fewstep::pipelines
