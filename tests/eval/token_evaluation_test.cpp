// A whole evaluation of a token model, twice: by plain autoregressive decoding, then by another decoder paired with it.
// The model is small and untrained: what is tested is that every number and file is there and means what it says.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "eval/html.h"
#include "eval/runner.h"
#include "eval/sample_record.h"
#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/json.h"
#include "src/config/config.h"
#include "src/models/conv_encoder.h"
#include "src/models/model.h"
#include "src/tensor/ops.h"
#include "tests/support/small_models.h"

namespace fewstep::eval {
namespace {

using testing::HasSubstr;
namespace fs = std::filesystem;

// A model folder, and an encoder that judges, both with random weights.
void write_models(const fs::path& folder) {
  support::write_small_pipeline(folder / "model");
  models::ConvEncoderConfig judge;
  judge.channels = {4, 8}, judge.kernels = {3, 3}, judge.strides = {2, 2}, judge.blocks = {1, 1}, judge.norm_groups = 4;
  judge.feature_stages = {0, 1}, judge.embedding_dim = 4;
  models::ConvEncoder encoder(judge);
  encoder.initialise(3);
  models::save_model(folder / "judge", encoder, judge.to_json());
}

class TokenEvaluation : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    root() = fs::temp_directory_path() / fmt::format("fewstep_token_evaluation_{}", getpid());
    write_models(root());
    Results results = evaluate("ar", "");
    EXPECT_EQ(results.rows.size(), 2u);
  }
  static void TearDownTestSuite() { fs::remove_all(root()); }
  static fs::path& root() {
    static fs::path path;
    return path;
  }
  static Results evaluate(const std::string& name, const std::string& more) {
    auto c = config::parse<EvalConfig>(fmt::format(
        "name: {0}\nout: {1}/{0}\nmodel: {1}/model\njudge: {1}/judge\ndata: {{kind: fashion_mnist}}\nnum_samples: 48\n"
        "reference_samples: 100\nreport_prompts: 2\nlatency: {{runs: 2, warmup: 0}}\n{2}",
        name, root().string(),
        more.empty() ? "metrics: [fd, token_nll]\ngenerate: {guidance: 2, top_k: 8, batch_size: 32}\n" : more));
    return run_evaluation(c, at::kCPU);
  }
};

TEST_F(TokenEvaluation, AutoregressiveSamplesHaveTokenNumbers) {
  const Results r = load_results(root() / "ar/results.json");
  const ResultRow& row = r.rows[1];
  EXPECT_EQ(row.label, "samples");
  EXPECT_DOUBLE_EQ(row.steps, 64);
  EXPECT_DOUBLE_EQ(row.nfe, 128);
  EXPECT_DOUBLE_EQ(row.metrics.at("step_compression").value, 1);
  EXPECT_EQ(row.metrics.at("token_nll").n, 48);
  EXPECT_GT(row.metrics.at("token_nll").value, 0.1);
  EXPECT_LT(row.metrics.at("token_nll").value, std::log(16.0));
  EXPECT_EQ(row.metrics.at("token_outside").value, 0);  // top-k was on when they were drawn
  EXPECT_FALSE(row.metrics.contains("speed_up[ar]"));
  EXPECT_FALSE(r.rows[0].metrics.contains("step_compression"));
  const SampleRecord record = load_samples(root() / "ar/samples.safetensors");
  EXPECT_EQ(record.tokens.sizes(), at::IntArrayRef({48, 64}));
  EXPECT_EQ(record.features.size(0), 48);
  EXPECT_EQ(record.model.size(), 64u);
  EXPECT_EQ(record.decoding, "guidance=2 top_k=8 batch_size=32");
}

TEST_F(TokenEvaluation, AnExactDecoderIsPairedWithIt) {
  const Results r = evaluate(
      "gumbel", "metrics: [fd, token_nll, draft_stability]\npaired_with: " + (root() / "ar").string() +
                    "\ngenerate: {guidance: 2, top_k: 8, decoder: sjd2, window: 16, steps: 2, coupling: gumbel}\n");
  const ResultRow& row = r.rows[1];
  EXPECT_GT(row.metrics.at("step_compression").value, 1);
  EXPECT_LT(row.steps, 64);
  EXPECT_NEAR(row.step_compression, row.metrics.at("step_compression").value, 1e-9);
  EXPECT_LT(std::abs(row.metrics.at("token_nll_difference").value), 3 * row.metrics.at("token_nll_difference").ci95);
  EXPECT_TRUE(row.metrics.contains("token_auc"));
  EXPECT_TRUE(row.metrics.contains("draft_stability"));
  const std::string judge = row.metrics.lower_bound("FD[")->first;
  EXPECT_TRUE(row.metrics.contains("FD_difference" + judge.substr(2))) << judge;
  EXPECT_TRUE(std::isnan(row.metrics.at("FD_difference" + judge.substr(2)).floor));  // a difference has no floor
  EXPECT_GT(row.latency_ar.runs, 0);
  EXPECT_TRUE(row.metrics.contains("speed_up[ar]"));
  const std::string html = read_text(root() / "gumbel/report.html");
  EXPECT_EQ(check_balanced(html), "");
  for (const char* part :
       {"Decoding", "Exact: the images follow", "100.00 % of the tokens", "after pass 1,", "decoder=sjd2"})
    EXPECT_THAT(html, HasSubstr(part));
  EXPECT_THAT(results_table(r), HasSubstr("- samples: step_compression "));
}

TEST_F(TokenEvaluation, ALossyDecoderIsMarkedAndPairsOfOtherSeedsAreRefused) {
  const std::string rest =
      "metrics: [token_nll]\nreport: false\ngenerate: {guidance: 2, top_k: 8, decoder: sjd2, mode: published, "
      "window: 16, steps: 2}\n";
  EXPECT_EQ(evaluate("published", rest).rows[1].metrics.at("step_compression").note, "lossy");
  try {
    evaluate("other", rest + "seed: 3\npaired_with: " + (root() / "ar").string() + "\n");
    FAIL() << "seeds 3 and 0 were paired";
  } catch (const ConfigError& e) {
    EXPECT_THAT(e.what(), HasSubstr("seed 0"));
  }
}

}  // namespace
}  // namespace fewstep::eval
