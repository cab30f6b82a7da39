// Configs and helpers of the suites that run diffusion trainings: tiny networks on Fashion-MNIST, seconds each.
#pragma once
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "src/io/checkpoint.h"
#include "src/io/safetensors.h"
#include "tests/trainers/training_runs.h"

namespace fewstep::testing {

inline constexpr const char* kClassRun = R"(
name: classes
seed: 5
threads: 1
data: {kind: fashion_mnist, image_size: 32}
loop: {steps: 6, batch_size: 8, log_every: 1, validation_samples: 16, workers: 1}
trainer:
  kind: diffusion
  latents: {kind: pixel_unshuffle, factor: 4}
  conditioner: {kind: class, dim: 16, micro: {size: true, crop: false, target: false}}
  unet:
    block_out_channels: [16, 16]
    layers_per_block: [1]
    down_block_types: [DownBlock2D, CrossAttnDownBlock2D]
    up_block_types: [CrossAttnUpBlock2D, UpBlock2D]
    attention_head_dim: [2]
    norm_num_groups: 4
    addition_time_embed_dim: 16
  timesteps: {stratified: true}
  optimizer: {lr: 5.0e-3, ema_decay: 0.9, ema_warmup: diffusers}
  sample: {steps: 3, rows: 1}
)";

inline constexpr const char* kTextRun = R"(
base: class.yaml
name: texts
trainer:
  conditioner: {kind: text, dim: 16, layers: 1, heads: 2, length: 12, vocab_size: 300, micro: {size: false, crop: false, target: false}}
  schedule: {kind: flow}
  prediction: flow_prediction
  timesteps: {kind: logit_normal}
)";

// Two stages without settings, and two with.
inline const std::string kSameStages = "stages=[{name: a, steps: 3}, {name: b, steps: 3}]";
inline const std::string kOtherStages =
    "stages=[{name: a, steps: 3}, {name: b, steps: 3, set: {data.image_size: 40, loop.batch_size: 6, trainer.loss.noise_offset: 0.1}}]";

class DiffusionRuns : public RunFolders {
 protected:
  static void SetUpTestSuite() {
    RunFolders::SetUpTestSuite();
    write_config("class.yaml", kClassRun);
    write_config("text.yaml", kTextRun);
  }
  static std::filesystem::path checkpoint(const std::string& run, int64_t step) { return io::checkpoint_path(root() / run, step); }
  static std::filesystem::path model(const std::string& run, int64_t step) { return checkpoint(run, step) / "model"; }
  static TensorMap unet(const std::string& run, int64_t step) {
    return io::Safetensors(model(run, step) / "unet" / "diffusion_pytorch_model.safetensors").all();
  }
  static void run(const std::string& config, const std::string& name, const std::vector<std::string>& more = {}) {
    const Finished f = train(config, name, more);
    ASSERT_EQ(f.code, 0) << f.output;
  }
  // Trained to the end in one go, and killed (SIGKILL) once a checkpoint was there and resumed: the same files.
  static void kill_and_compare(const std::string& config, const std::string& name, std::vector<std::string> more) {
    more.insert(more.end(), {"loop.checkpoint_every=2"});
    run(config, name + "-whole", more);
    auto endless = more;
    Child child(arguments(config, name + "-killed", endless), root());
    ASSERT_TRUE(child.wait_until([&] { return std::filesystem::exists(checkpoint(name + "-killed", 2)); })) << child.output();
    child.signal(SIGKILL);
    child.wait();
    more.emplace_back("--resume");
    const Finished resumed = train(config, name + "-killed", more);
    ASSERT_EQ(resumed.code, 0) << resumed.output;
    expect_same_files(name + "-whole", name + "-killed", 6);
    EXPECT_EQ(relative_difference(unet(name + "-whole", 6), unet(name + "-killed", 6)), 0);
  }
};

}  // namespace fewstep::testing
