// Diffusion training as a user runs it: resume, ranks, stages, adapters, faults. Tiny networks on Fashion-MNIST, seconds each.
#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "src/base/files.h"
#include "src/base/json.h"
#include "src/io/checkpoint.h"
#include "src/io/image.h"
#include "src/io/safetensors.h"
#include "src/tensor/ops.h"
#include "tests/trainers/diffusion_runs.h"

namespace fewstep {
namespace {
namespace fs = std::filesystem;
using ::testing::HasSubstr;
using testing::Child;
using testing::DiffusionRuns;
using testing::Finished;
using testing::kSameStages;

TEST_F(DiffusionRuns, LossFallsAndTheFolderSamples) {
  run("text.yaml", "falls", {"loop.steps=40", "trainer.optimizer.lr=1.0e-2"});
  const auto l = losses("falls", "loss");
  ASSERT_EQ(l.size(), 40u);
  EXPECT_LT((l[36] + l[37] + l[38] + l[39]) / 4, (l[0] + l[1] + l[2] + l[3]) / 4 - 0.3);
  for (const char* name : {"loss[t<0.1]", "loss[t<1.0]"}) EXPECT_EQ(losses("falls", name, "validation").size(), 1u) << name;
  for (const char* file : {"model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json",
                           "text_encoder/config.json", "tokenizer/vocab.json", "conditioner/conditioner_config.json",
                           "latent_space/latent_space_config.json"})
    EXPECT_TRUE(fs::exists(model("falls", 40) / file)) << file;
  EXPECT_TRUE(fs::exists(root() / "falls" / "samples" / "step-000000040.png"));
  EXPECT_TRUE(fs::exists(root() / "falls" / "report.html"));
  const Finished f = Child({FEWSTEP_BINARY, "sample", (root() / "falls").string(), "--prompt", "a dress", "--num", "2", "--out",
                            (root() / "drawn").string(), "sampling_steps=4"}, root()).wait();
  ASSERT_EQ(f.code, 0) << f.output;
  EXPECT_TRUE(fs::exists(root() / "drawn" / "grid.png"));
}

TEST_F(DiffusionRuns, AKilledRunGoesOnBitForBit) {
  kill_and_compare("class.yaml", "class", {});
  kill_and_compare("text.yaml", "text", {});
}

// Ten losses in float64 as they were when the trainer was written: FEWSTEP_UPDATE=1 writes them anew (look at the difference).
void expect_golden_losses(const std::string& name, const std::vector<double>& losses) {
  const fs::path file = fs::path(FEWSTEP_SOURCE_DIR) / "tests" / "golden" / "diffusion_losses" / (name + ".txt");
  if (std::getenv("FEWSTEP_UPDATE")) {
    make_directories(file.parent_path());
    write_text_atomic(file, fmt::format("{:.12g}\n", fmt::join(losses, "\n")));
  }
  std::istringstream lines(read_text(file));
  std::vector<double> expected;
  for (double x; lines >> x;) expected.push_back(x);
  ASSERT_EQ(losses.size(), expected.size());
  for (size_t i = 0; i < losses.size(); ++i) EXPECT_NEAR(losses[i], expected[i], 1e-6 * expected[i]) << name << " step " << i;
}

// Rows of the global batch are shared out over ranks and micro-steps: the same gradient up to the order of sums.
TEST_F(DiffusionRuns, RanksAndAccumulationEqualOne) {
  const std::vector<std::string> shared = {"trainer.precision=float64", "loop.steps=10"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), shared.begin(), shared.end());
    return more;
  };
  for (const std::string config : {"class", "text"}) {
    run(config + ".yaml", config + "-one", shared);
    expect_golden_losses(config, losses(config + "-one", "loss"));
    run(config + ".yaml", config + "-two-ranks", with({"--nproc", "2"}));
    run(config + ".yaml", config + "-accumulated", with({"loop.accumulate=4"}));
    for (const char* other : {"-two-ranks", "-accumulated"}) {
      const double d = relative_difference(weights(config + "-one", 10), weights(config + other, 10));
      std::printf("%s: 1 rank x 8 against %s, 10 steps, float64: |dw| / |w| = %.2e\n", config.c_str(), other, d);
      EXPECT_LE(d, 1e-10);
    }
  }
  run("class.yaml", "one-other-seed", with({"seed=6"}));
  EXPECT_GT(relative_difference(weights("class-one", 10), weights("one-other-seed", 10)), 1e-3);
}

TEST_F(DiffusionRuns, RecomputeEqualsPlain) {
  run("class.yaml", "kept");
  run("class.yaml", "recomputed", {"trainer.recompute=true"});
  // Gradients of what all blocks share (time, context) are summed in another order.
  EXPECT_LE(relative_difference(weights("kept", 6), weights("recomputed", 6)), 1e-6);
}

TEST_F(DiffusionRuns, AnAdapterIsSavedMergedAndApart) {
  run("class.yaml", "lora-start");
  write_config("lora.yaml", R"(
name: lora
seed: 5
threads: 1
data: {kind: fashion_mnist, image_size: 32}
loop: {steps: 6, batch_size: 8, log_every: 1, validation_samples: 16, workers: 1}
trainer:
  kind: diffusion
  start: ROOT/lora-start
  lora: {rank: 2, alpha: 4}
  optimizer: {lr: 1.0e-2, ema_decay: 0.9}
  sample: {steps: 3, rows: 1}
)");
  run("lora.yaml", "lora");
  const TensorMap start = unet("lora-start", 6), merged = unet("lora", 6);
  const TensorMap apart = io::Safetensors(model("lora", 6) / "adapter" / "adapter_model.safetensors").all();
  int64_t changed = 0;
  for (const auto& [name, weight] : start) {
    const std::string layer = "base_model.model." + name.substr(0, name.rfind('.'));
    const auto a = apart.find(layer + ".lora_A.weight");
    if (a == apart.end() || !name.ends_with(".weight")) {
      EXPECT_TRUE(merged.at(name).equal(weight)) << name << " is frozen";
      continue;
    }
    const Tensor want = weight + 2.0 * at::mm(apart.at(layer + ".lora_B.weight"), a->second);
    EXPECT_LE((merged.at(name) - want).abs().max().item<double>(), 1e-6) << name;
    changed += !merged.at(name).equal(weight);
  }
  EXPECT_EQ(2 * changed, static_cast<int64_t>(apart.size()));
  EXPECT_GT(changed, 0);
  const Json config = read_json(model("lora", 6) / "adapter" / "adapter_config.json");
  EXPECT_EQ(config.at("r"), 2);

  // Resume: bit for bit; not from another start.
  run("lora.yaml", "lora-part", {"loop.checkpoint_every=3"});
  fs::remove_all(checkpoint("lora-part", 6));
  const Finished resumed = train("lora.yaml", "lora-part", {"loop.checkpoint_every=3", "--resume"});
  ASSERT_EQ(resumed.code, 0) << resumed.output;
  expect_same_files("lora", "lora-part", 6);
  fs::copy(root() / "lora-start", root() / "lora-moving", fs::copy_options::recursive);
  run("lora.yaml", "lora-moved", {"trainer.start=" + (root() / "lora-moving").string()});
  fs::remove_all(root() / "lora-moving");
  run("class.yaml", "lora-moving", {"seed=8"});
  const Finished moved = train("lora.yaml", "lora-moved", {"trainer.start=" + (root() / "lora-moving").string(), "--resume"});
  EXPECT_EQ(moved.code, 3) << moved.output;
  EXPECT_THAT(moved.output, HasSubstr("is not the model this run started from"));
}

// Every sample of the stream, by step, as the debug log names them.
std::map<int64_t, std::vector<int64_t>> stream_of(const std::string& output) {
  std::map<int64_t, std::vector<int64_t>> ids;
  std::istringstream lines(output);
  for (std::string line; std::getline(lines, line);) {
    long step = 0;
    const size_t at = line.find("step "), open = line.find(" ids [");
    if (at == std::string::npos || open == std::string::npos || std::sscanf(line.c_str() + at, "step %ld rank", &step) != 1) continue;
    std::istringstream rest(line.substr(open + 6));
    for (std::string id; std::getline(rest, id, ',');) ids[step].push_back(std::stoll(id));
  }
  for (auto& [step, row] : ids) std::sort(row.begin(), row.end());
  return ids;
}

// The bucketed stream, too: the same samples in each step for any number of ranks, also after a kill, one size a step.
TEST_F(DiffusionRuns, TheStreamIsTheSameForAllRanksAndAfterAKill) {
  const fs::path folder = root() / "pictures";
  make_directories(folder);
  for (int64_t i = 0; i < 40; ++i) {
    const int64_t w = i % 2 ? 48 : 24, h = i % 2 ? 24 : 48;
    io::write_image(folder / fmt::format("{:02}.png", i), (at::arange(3 * h * w).view({3, h, w}) * (i + 1)).remainder(256).to(at::kByte));
    write_text_atomic(folder / fmt::format("{:02}.txt", i), i % 2 ? "a wide thing" : "a high thing");
  }
  write_config("buckets.yaml", R"(
base: text.yaml
name: buckets
data: {kind: image_folder, folder: ROOT/pictures, crop: random, heldout: 0.1, test: 0, buckets: {kind: list, sizes: [16x32, 32x16]}}
trainer:
  conditioner: {micro: {size: true, crop: true, target: true}}
)");
  const auto stream = [&](const std::string& name, std::vector<std::string> more) {
    std::vector<std::string> a = arguments("buckets.yaml", name, std::move(more));
    a.insert(a.begin() + 1, {"--log", "debug"});
    const Finished f = Child(a, root()).wait();
    EXPECT_EQ(f.code, 0) << f.output;
    return stream_of(f.output);
  };
  const auto one = stream("buckets-1", {"loop.checkpoint_every=3"});
  ASSERT_EQ(one.size(), 6u);
  for (const auto& [step, ids] : one) {
    ASSERT_EQ(ids.size(), 8u) << step;
    for (const int64_t id : ids) EXPECT_EQ(id % 2, ids.front() % 2) << "step " << step << " mixes sizes";
  }
  EXPECT_EQ(stream("buckets-2", {"--nproc", "2"}), one);
  EXPECT_EQ(stream("buckets-4", {"--nproc", "4"}), one);
  fs::remove_all(checkpoint("buckets-1", 6));
  auto rest = one;
  for (int64_t step = 0; step < 3; ++step) rest.erase(step);
  EXPECT_EQ(stream("buckets-1", {"loop.checkpoint_every=3", "--resume"}), rest);

  // What cannot be read or does not fit is named.
  const Finished few = train("buckets.yaml", "buckets-few", {"loop.batch_size=24"});
  EXPECT_EQ(few.code, 2) << few.output;
  EXPECT_THAT(few.output, HasSubstr("16x32"));
  const Finished small = train("buckets.yaml", "buckets-small", {"data.buckets.sizes=[64x128, 128x64]", "data.small_images=error"});
  EXPECT_NE(small.code, 0) << small.output;
  EXPECT_THAT(small.output, HasSubstr(".png"));
  write_text_atomic(folder / "04.png", read_text(folder / "04.png").substr(0, 200));
  const Finished broken = train("buckets.yaml", "buckets-broken");
  EXPECT_EQ(broken.code, 3) << broken.output;
  EXPECT_THAT(broken.output, HasSubstr("04.png"));
}

TEST_F(DiffusionRuns, BadInputIsAnswered) {
  run("class.yaml", "start-epsilon", {"loop.steps=1"});
  write_config("start.yaml", "name: s\ndata: {kind: fashion_mnist, image_size: 32}\nloop: {steps: 1, batch_size: 8}\n"
                             "trainer: {kind: diffusion, start: ROOT/start-epsilon}\n");
  struct Case {
    std::vector<std::string> more;
    int code;
    std::string says;
  };
  const Case cases[] = {
      {{"trainer.unet.norm_num_groups=5"}, 2, "norm_num_groups"},
      {{"trainer.latents.factor=5"}, 2, "not a multiple of 5"},
      {{"trainer.conditioner.micro.sise=true"}, 2, "did you mean 'size'"},
      {{"trainer.timesteps.max=1.5"}, 2, "timesteps.max"},
      {{"loop.batch_size=7", "--nproc", "2"}, 2, "loop.batch_size 7 is not divisible by 2 ranks"},
      {{"loop.steps=3", "stages=[{name: a, steps: 2}, {name: b, steps: 1, set: {loop.batch_size: 9}}]", "--nproc", "2"}, 2, "stage 'b': loop.batch_size 9"},
      {{"loop.steps=2", "stages=[{name: a, steps: 2, set: {trainer.unet.norm_eps: 1}}]"}, 2, "what makes the network cannot change"},
      {{kSameStages, "loop.steps=9"}, 2, "steps is 9, but those of the stages sum up to 6"},
      {{"trainer.optimizer.lr=1.0e+30", "trainer.optimizer.clip_norm=0"}, 4, "gradient of 'diffusion' is not finite"},
  };
  const Case starts[] = {{{"trainer.prediction=v_prediction"}, 2, "predicts 'epsilon'"},
                         {{"trainer.lora.rank=2", "trainer.lora.targets=[to_nothing]"}, 2, "to_nothing"},
                         {{"trainer.add_numbers=[size]"}, 2, "is told it already"},
                         {{"trainer.start=/nonexistent"}, 3, "/nonexistent"}};
  int n = 0;
  const auto expect = [&](const std::string& config, const Case& c) {
    const Finished f = train(config, "bad-" + std::to_string(n++), c.more);
    EXPECT_EQ(f.code, c.code) << c.says << "\n" << f.output;
    EXPECT_THAT(f.output, HasSubstr(c.says));
  };
  for (const Case& c : cases) expect("class.yaml", c);
  for (const Case& c : starts) expect("start.yaml", c);
}

}  // namespace
}  // namespace fewstep
