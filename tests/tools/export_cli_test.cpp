// `fewstep export` and `fewstep model info` of exported models, as a user meets them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "src/base/files.h"
#include "src/base/json.h"
#include "src/io/checkpoint.h"
#include "src/io/safetensors.h"
#include "src/models/model.h"
#include "src/models/model_folder.h"
#include "src/tensor/ops.h"
#include "tests/support/process.h"
#include "tests/support/scratch.h"
#include "tests/support/small_models.h"
#include "tests/support/small_stability.h"

namespace fewstep {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::Finished;

class ExportCli : public ::testing::Test {
 protected:
  const testing::ScratchFolder scratch{"export-cli"};
  const fs::path folder = scratch / "model";
  void SetUp() override { support::write_small_release(folder, support::SmallRelease::base, FEWSTEP_SOURCE_DIR "/tests/golden/clip_tokenizer"); }
  Finished run(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), FEWSTEP_BINARY);
    return testing::Child(arguments, scratch.path(), {{"FEWSTEP_CACHE", scratch / "cache"}}).wait();
  }
  Finished export_to(const fs::path& source, const std::string& format, const fs::path& out, std::vector<std::string> more = {}) const {
    std::vector<std::string> arguments = {"export", source.string(), "--format", format, "--out", out.string()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run(arguments);
  }
  // Every weight file of `a` byte for byte in `b`, every other file as text.
  static void expect_same(const fs::path& a, const fs::path& b) {
    EXPECT_EQ(models::files_below(a), models::files_below(b));
    for (const fs::path& file : models::files_below(a)) EXPECT_EQ(read_text(a / file), read_text(b / file)) << file;
  }
};

TEST_F(ExportCli, ThereAndBackIsTheSame) {
  const fs::path one = scratch / "one.safetensors", two = scratch / "two.safetensors";
  ASSERT_EQ(export_to(folder, "single-file", one).code, 0);
  ASSERT_EQ(export_to(folder, "single-file", two).code, 0);
  EXPECT_EQ(read_text(one), read_text(two)) << "equal models make equal files";
  const Finished back = export_to(one, "diffusers", scratch / "back");
  ASSERT_EQ(back.code, 0) << back.output;
  expect_same(folder, scratch / "back");  // our own writer: files, not only tensors, are equal
  const Finished info = run({"model", "info", one.string()});
  EXPECT_EQ(info.code, 0);
  EXPECT_THAT(info.output, AllOf(HasSubstr("single file: StableDiffusionXLPipeline, predicts epsilon; holds "), HasSubstr("unet: UNet2DConditionModel: "),
                                 HasSubstr("stored as F32 under 'conditioner.embedders.1.model.'"), HasSubstr("sdxl-base by fewstep (stable-diffusion-xl-v1-base 1024x1024)")));
}

TEST_F(ExportCli, HalfPrecisionShardsAndVariants) {
  const fs::path out = scratch / "half";
  const Finished done = export_to(folder, "diffusers", out, {"--dtype", "float16", "--variant", "fp16", "--max-shard-size", "2MB"});
  ASSERT_EQ(done.code, 0) << done.output;
  ASSERT_TRUE(fs::exists(out / "unet/diffusion_pytorch_model.safetensors.index.fp16.json"));
  EXPECT_TRUE(fs::exists(out / "text_encoder/model.fp16.safetensors"));
  const io::Safetensors before(folder / "unet/diffusion_pytorch_model.safetensors");
  const io::Safetensors after(out / "unet/diffusion_pytorch_model.safetensors.index.fp16.json");
  EXPECT_EQ(before.names(), after.names());
  for (const std::string& name : before.names()) ASSERT_TRUE(after.get(name).equal(before.get(name).to(at::kHalf))) << name;
  for (const auto& entry : fs::directory_iterator(out / "unet")) EXPECT_LT(entry.file_size(), 2'100'000u) << entry.path();
  EXPECT_EQ(read_text(out / "unet/config.json"), read_text(folder / "unet/config.json"));
  const Finished info = run({"model", "info", out.string()});
  EXPECT_THAT(info.output, AllOf(HasSubstr("unet: UNet2DConditionModel"), HasSubstr("stored as F16 in diffusion_pytorch_model.safetensors.index.fp16.json")));
  // Back from the shards into one file, and the plain spelling from the variant.
  EXPECT_EQ(export_to(out, "single-file", scratch / "half.safetensors").code, 0);
  EXPECT_EQ(export_to(out, "diffusers", scratch / "plain", {"--from-variant", "fp16"}).code, 0);
  EXPECT_TRUE(fs::exists(scratch / "plain/unet/diffusion_pytorch_model.safetensors"));
}

TEST_F(ExportCli, RunsExportTheirLatestCheckpointWithHardLinks) {
  const fs::path run_dir = scratch / "run";
  for (const int64_t step : {10, 20}) {
    io::CheckpointWriter checkpoint(io::checkpoint_path(run_dir, step));
    fs::copy(folder, checkpoint.folder() / "model", fs::copy_options::recursive);
    Json scheduler = read_json(checkpoint.folder() / "model/scheduler/scheduler_config.json");
    scheduler["step"] = step;
    write_json(checkpoint.folder() / "model/scheduler/scheduler_config.json", scheduler);
    checkpoint.commit();
    io::publish_checkpoint(run_dir, step, 0);
  }
  ASSERT_EQ(export_to(run_dir, "diffusers", scratch / "out").code, 0);
  EXPECT_EQ(read_json(scratch / "out/scheduler/scheduler_config.json").at("step"), 20);
  EXPECT_TRUE(fs::equivalent(scratch / "out/vae/diffusion_pytorch_model.safetensors",
                             io::checkpoint_path(run_dir, 20) / "model/vae/diffusion_pytorch_model.safetensors"));
}

// A single file stands wherever a model folder does, and gives the same images.
TEST_F(ExportCli, SampleReadsSingleFiles) {
  models::UNet2DConfig c = support::small_unet_config(support::SmallRelease::base);
  c.block_out_channels = {32, 32, 32}, c.attention_head_dim = {2}, c.transformer_layers_per_block = {1};
  c.cross_attention_dim = 64 + 128, c.projection_class_embeddings_input_dim = 64 + 6 * 256, c.sample_size = 8;  // of the small encoders
  models::UNet2DConditionModel unet(c);
  unet.initialise(5);
  models::save_model(folder / "unet", unet, c.to_json());
  const fs::path file = scratch / "model.safetensors";
  ASSERT_EQ(export_to(folder, "single-file", file).code, 0);
  const auto sample = [&](const fs::path& model, const char* out) {
    const Finished done = run({"sample", model.string(), "--prompt", "a dress", "--steps", "2", "--out", (scratch.path() / out).string()});
    EXPECT_EQ(done.code, 0) << done.output;
    return fs::exists(scratch.path() / out / "000000.png") ? read_text(scratch.path() / out / "000000.png") : std::string(out);
  };
  EXPECT_EQ(sample(folder, "from-folder"), sample(file, "from-file"));
}

// Our class name means nothing to diffusers: with SDXL's components the folder is exported as SDXL's pipeline.
TEST_F(ExportCli, OurPipelineBecomesTheirs) {
  Json index = read_json(folder / "model_index.json");
  index["_class_name"] = "FewstepDiffusionPipeline";
  index["conditioner"] = {"fewstep", "SdxlConditioner"};
  write_json(folder / "model_index.json", index);
  make_directories(folder / "conditioner");
  write_json(folder / "conditioner/conditioner_config.json", {{"kind", "sdxl"}});
  ASSERT_EQ(export_to(folder, "diffusers", scratch / "out").code, 0);
  const Json exported = read_json(scratch / "out/model_index.json");
  EXPECT_EQ(exported.at("_class_name"), "StableDiffusionXLPipeline");
  EXPECT_FALSE(exported.contains("conditioner"));
}

TEST_F(ExportCli, ProblemsSayWhatToDo) {
  const auto expect = [&](const Finished& f, int code, const char* text) {
    EXPECT_EQ(f.code, code) << f.output;
    EXPECT_THAT(f.output, HasSubstr(text));
  };
  const fs::path file = scratch / "x.safetensors";
  expect(export_to(folder, "onnx", file), 2, "unknown --format: 'onnx' is not one of diffusers, single-file");
  expect(export_to(folder, "single-file", file, {"--dtype", "int8"}), 2, "unknown --dtype: 'int8' is not one of float32, float16, bfloat16");
  expect(export_to(folder, "single-file", scratch / "x"), 2, "a single file is named *.safetensors");
  expect(export_to(folder, "diffusers", folder), 2, "a folder with files in it");
  expect(export_to(folder, "diffusers", scratch / "y", {"--max-shard-size", "5 parsecs"}), 2, "'5 parsecs' is not a size");
  expect(export_to(folder, "single-file", file, {"--from-variant", "fp16"}), 3, "no weights of variant 'fp16' (there are no variants)");
  expect(export_to(scratch / "nowhere", "diffusers", scratch / "y"), 3, "no such file or folder");
  support::write_small_pipeline(scratch / "ar");
  expect(export_to(scratch / "ar", "single-file", file), 2, "AutoregressivePipeline has no UNet");
  std::ofstream(scratch / "broken.safetensors") << "not a checkpoint at all";
  expect(run({"model", "info", (scratch / "broken.safetensors").string()}), 3, "broken.safetensors");
  EXPECT_FALSE(fs::exists(file));
  for (const auto& entry : fs::directory_iterator(scratch.path())) EXPECT_FALSE(entry.path().filename().string().starts_with(".export-")) << "left behind";
}

}  // namespace
}  // namespace fewstep
