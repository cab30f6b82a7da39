// Training as a user runs it, in one scratch folder for all tests of a program: tiny models on Fashion-MNIST, seconds each.
#pragma once
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "src/tensor/tensor.h"
#include "tests/support/process.h"

namespace fewstep::testing {

// A scratch folder for the suite's configs and runs. Each run of a suite has a name of its own.
class RunFolders : public ::testing::Test {
 protected:
  static void SetUpTestSuite();
  static void TearDownTestSuite();

  static const std::filesystem::path& root();
  static void write_config(const std::string& name, std::string text);  // ROOT in `text` stands for the scratch folder
  static std::vector<std::string> arguments(const std::string& config, const std::string& run, std::vector<std::string> more);
  static Finished train(const std::string& config, const std::string& run, std::vector<std::string> more = {});
  static TensorMap weights(const std::string& run, int64_t step, const std::string& stem = "weights");
  // A metric in every line of `group` that has it.
  static std::vector<double> losses(const std::string& run, const std::string& key, const std::string& group = "train");
  // The same of two runs' checkpoints, but for the biases of attention's keys: softmax does not see them, so their gradient is
  // rounding noise, which Adam blows up.
  static double distance(const std::string& a, const std::string& b, int64_t step, const std::string& stem = "weights");
  static void expect_same_files(const std::string& a, const std::string& b, int64_t step);  // a checkpoint's safetensors
  static double relative_difference(const TensorMap& a, const TensorMap& b);                // |a - b| / |a| over all weights
};

// The configs vq.yaml and ar.yaml; the tokenizer every transformer needs is trained once, as run `vq`.
class TrainingRuns : public RunFolders {
 protected:
  static void SetUpTestSuite();
};

}  // namespace fewstep::testing
