#include "tests/trainers/training_runs.h"

#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>

#include "src/base/files.h"
#include "src/base/json.h"
#include "src/io/checkpoint.h"
#include "src/io/safetensors.h"
#include "src/tensor/ops.h"
#include "tests/support/scratch.h"

namespace fewstep::testing {
namespace fs = std::filesystem;
namespace {

constexpr const char* kVq = R"(
name: vq
seed: 3
threads: 1
data: {kind: fashion_mnist}
loop: {steps: 6, batch_size: 8, log_every: 1, validation_samples: 16, workers: 1}
trainer:
  kind: vq_tokenizer
  model: {patch_size: 4, block_out_channels: [16], layers_per_block: 1, latent_channels: 4, num_vq_embeddings: 16, norm_num_groups: 4, mid_block_add_attention: false}
  optimizer: {lr: 2.0e-3, ema_decay: 0.9}
  adversarial: {weight: 0.1, start: 0.0, discriminator: {channels: 8, layers: 1, norm_groups: 4}, optimizer: {lr: 1.0e-3}}
)";

constexpr const char* kAr = R"(
name: ar
seed: 5
threads: 1
data: {kind: fashion_mnist}
loop: {steps: 6, batch_size: 8, log_every: 1, validation_samples: 16, workers: 1}
trainer:
  kind: autoregressive
  tokenizer: ROOT/vq
  model: {hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2}
  optimizer: {lr: 2.0e-3, ema_decay: 0.9}
)";

std::unique_ptr<ScratchFolder>& scratch_of_the_suite() {
  static std::unique_ptr<ScratchFolder> folder;
  return folder;
}

}  // namespace

void RunFolders::SetUpTestSuite() { scratch_of_the_suite() = std::make_unique<ScratchFolder>("training"); }
void RunFolders::TearDownTestSuite() { scratch_of_the_suite().reset(); }

const fs::path& RunFolders::root() { return scratch_of_the_suite()->path(); }

void TrainingRuns::SetUpTestSuite() {
  RunFolders::SetUpTestSuite();
  write_config("vq.yaml", kVq);
  write_config("ar.yaml", kAr);
  const Finished vq = train("vq.yaml", "vq");
  ASSERT_EQ(vq.code, 0) << vq.output;
}

void RunFolders::write_config(const std::string& name, std::string text) {
  for (size_t i; (i = text.find("ROOT")) != std::string::npos;) text.replace(i, 4, root().string());
  write_text_atomic(root() / name, text);
}

std::vector<std::string> RunFolders::arguments(const std::string& config, const std::string& run, std::vector<std::string> more) {
  std::vector<std::string> a = {FEWSTEP_BINARY, "train", (root() / config).string(), "--run-dir", (root() / run).string()};
  a.insert(a.end(), more.begin(), more.end());
  return a;
}

Finished RunFolders::train(const std::string& config, const std::string& run, std::vector<std::string> more) {
  return Child(arguments(config, run, std::move(more)), root()).wait();
}

TensorMap RunFolders::weights(const std::string& run, int64_t step, const std::string& stem) {
  return io::Safetensors(io::checkpoint_path(root() / run, step) / (stem + ".safetensors")).all();
}

std::vector<double> RunFolders::losses(const std::string& run, const std::string& key, const std::string& group) {
  std::vector<double> out;
  std::istringstream lines(read_text(root() / run / "metrics.jsonl"));
  for (std::string line; std::getline(lines, line);)
    if (const Json j = Json::parse(line); j["group"] == group && j.contains(key)) out.push_back(j[key]);
  return out;
}

void RunFolders::expect_same_files(const std::string& a, const std::string& b, int64_t step) {
  for (const auto& entry : fs::directory_iterator(io::checkpoint_path(root() / a, step))) {
    if (entry.path().extension() != ".safetensors") continue;
    EXPECT_EQ(read_text(entry.path()), read_text(io::checkpoint_path(root() / b, step) / entry.path().filename()))
        << entry.path().filename();
  }
}

double RunFolders::relative_difference(const TensorMap& a, const TensorMap& b) {
  double difference = 0, norm = 0;
  for (const auto& [name, t] : a) {
    difference += (t - b.at(name)).to(at::kDouble).square().sum().item<double>();
    norm += t.to(at::kDouble).square().sum().item<double>();
  }
  return std::sqrt(difference / norm);
}

double RunFolders::distance(const std::string& a, const std::string& b, int64_t step, const std::string& stem) {
  TensorMap of_a = weights(a, step, stem);
  std::erase_if(of_a, [](const auto& entry) { return entry.first.ends_with("to_k.bias") || entry.first.ends_with("key.bias"); });
  return relative_difference(of_a, weights(b, step, stem));
}

}  // namespace fewstep::testing
