// Numbers of tokens: classifier and its area under the curve, stability of drafts, paired differences, sample records,
// the report's section. With made-up tokens; a whole evaluation of a small model is in token_evaluation_test.cpp.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "eval/decoding_section.h"
#include "eval/draft_stability.h"
#include "eval/html.h"
#include "eval/latency.h"
#include "eval/sample_record.h"
#include "eval/token_classifier.h"
#include "eval/token_metrics.h"
#include "src/base/error.h"
#include "src/config/config.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "tests/support/message_of.h"

namespace fewstep::eval {
namespace {

using testing::HasSubstr;
namespace fs = std::filesystem;

// --- the classifier

// Smooth random fields in 32 levels: neighbours are alike, as codes of photographs are.
Tensor smooth_grids(int64_t n, int64_t side, uint64_t seed) {
  const Tensor coarse = normal_by_id(at::arange(n), {1, side / 4, side / 4}, seed, Stream::eval, 0);
  const Tensor field = at::upsample_bilinear2d(coarse, {side, side}, false);
  return ((field + 2) * 8).to(at::kLong).clamp(0, 31).flatten(1);
}

// A tenth of the tokens is exchanged for tokens of other places: marginals stay, dependence suffers.
Tensor with_errors(const Tensor& grids, uint64_t seed) {
  const Tensor u = uniform_by_id(at::arange(grids.size(0)), grids.size(1), seed, Stream::eval, 1);
  const Tensor other = grids.roll(1, 0).flip({1});
  return at::where(u.lt(0.1), other, grids);
}

TEST(TokenClassifier, SeesAPlantedDifferenceAndNoneBetweenHalvesOfOneLaw) {
  constexpr int64_t kSide = 12, kN = 300;
  // Vectors of the codes, as a model's embedding table gives them: close for close levels.
  const Tensor level = at::arange(32, at::kFloat).unsqueeze(1) / 32;
  const TokenGrid grid{
      .codes = 32, .rows = kSide, .columns = kSide, .table = at::cat({level, level.square(), level.pow(3)}, 1)};
  const Tensor a = smooth_grids(kN, kSide, 1), b = smooth_grids(kN, kSide, 2);
  const Value planted = token_auc(with_errors(a, 3), b, grid), null = token_auc(a, b, grid);
  std::printf("AUC of a planted difference %.3f +- %.3f, of two halves of one law %.3f +- %.3f\n", planted.value,
              planted.ci95, null.value, null.ci95);
  EXPECT_GT(planted.value, 0.8);
  EXPECT_EQ(planted.n, kN);  // both grids of half of the captions
  EXPECT_LT(std::abs(null.value - 0.5), 0.05 + null.ci95);
  EXPECT_GT(null.ci95, 0.02);
}

TEST(TokenClassifier, IsDeterministicAndRefusesTooFew) {
  const TokenGrid grid{.codes = 32, .rows = 8, .columns = 8};
  const Tensor a = smooth_grids(40, 8, 1), b = smooth_grids(40, 8, 2);
  const TokenClassifierOptions options{.steps = 10, .pairs = 8, .seed = 4};
  EXPECT_EQ(token_auc(a, b, grid, options).value, token_auc(a, b, grid, options).value);
  EXPECT_EQ(token_auc(a, a, grid, options).value, 0.5);  // ties count half
  EXPECT_THROW(token_auc(a.slice(0, 0, 7), b.slice(0, 0, 7), grid, options), ConfigError);
}

TEST(PairedAuc, CountsPairsAndItsIntervalCovers) {
  EXPECT_EQ(paired_auc({3, 4}, {1, 2}).value, 1.0);
  EXPECT_EQ(paired_auc({1, 1}, {1, 1}).value, 0.5);
  EXPECT_EQ(paired_auc({1, 3}, {2, 0}).value, 0.75);
  // The same caption moves both scores together: the interval has to know.
  int covered = 0;
  constexpr int kTrials = 300, kPairs = 40;
  const Tensor draws = normal_by_id(at::arange(kTrials), {3, kPairs}, 5, Stream::eval, 2).to(at::kDouble).contiguous();
  for (int t = 0; t < kTrials; ++t) {
    const double* caption = draws.const_data_ptr<double>() + t * 3 * kPairs;
    std::vector<double> a, b;
    for (int i = 0; i < kPairs; ++i)
      a.push_back(caption[i] + caption[kPairs + i]), b.push_back(caption[i] + caption[2 * kPairs + i]);
    const Value v = paired_auc(a, b);
    covered += std::abs(v.value - 0.5) <= v.ci95;
  }
  EXPECT_GT(covered, 0.91 * kTrials);
  EXPECT_LT(covered, 0.99 * kTrials);
}

// --- stability

TEST(DraftStability, FollowsEachSlotFromItsFirstDraftToItsDecision) {
  // One image of three slots, window 2: slots 0 and 1 are there from the start, slot 2 enters after the first pass.
  const std::vector<Tensor> codes = {
      at::tensor({7, 5, 2}, at::kLong).view({1, 3}), at::tensor({7, 6, 3}, at::kLong).view({1, 3}),
      at::tensor({7, 6, 3}, at::kLong).view({1, 3}), at::tensor({7, 6, 4}, at::kLong).view({1, 3})};
  DraftStability stability;
  stability.add(codes, at::tensor({0, 2, 3}, at::kLong).view({1, 3}), 2);
  // slot 0 was decided in pass 0: nothing to see. slot 1: 5 -> 6 (age 1), 6 = 6 (age 2). slot 2: 2 -> 3 (0), 3 = 3 (1),
  // 3 -> 4 (2).
  const Value all = stability.result().at("draft_stability");
  EXPECT_DOUBLE_EQ(all.value, 2.0 / 5);
  EXPECT_EQ(all.n, 5);
  DraftStability many;
  for (int i = 0; i < 50; ++i) many.add(codes, at::tensor({0, 2, 3}, at::kLong).view({1, 3}), 2);
  const auto values = many.result();
  EXPECT_DOUBLE_EQ(values.at("draft_stability[age=0]").value, 0.0);
  EXPECT_DOUBLE_EQ(values.at("draft_stability[age=1]").value, 0.5);
  EXPECT_DOUBLE_EQ(values.at("draft_stability[age=2]").value, 0.5);
  EXPECT_FALSE(values.contains("draft_stability[age=4]"));
}

TEST(DraftStability, ASlotWithoutDraftIsNotCounted) {
  DraftStability stability;
  stability.add({at::tensor({-1, 1}, at::kLong).view({1, 2}), at::tensor({2, 1}, at::kLong).view({1, 2})},
                at::tensor({1, 1}, at::kLong).view({1, 2}), 0);
  EXPECT_EQ(stability.result().at("draft_stability").n, 1);
}

// --- paired differences

TEST(RelativeDifference, IsThatOfTheMeansWithAPairedInterval) {
  const Value same = relative_difference({1.1, 2.2, 4.4}, {1, 2, 4});
  EXPECT_NEAR(same.value, 0.1, 1e-12);
  EXPECT_NEAR(same.ci95, 0, 1e-12);  // each image differs by the same share
  const Value v = relative_difference({3, 1}, {1, 1});
  EXPECT_DOUBLE_EQ(v.value, 1.0);
  EXPECT_NEAR(v.ci95, 1.96 * std::sqrt(2.0) / std::sqrt(2.0), 1e-12);  // residuals 1 and -1
}

TEST(FrechetDifference, PairsCancelWhatTheSetsShare) {
  const auto normal = [](int64_t n, uint64_t seed) {
    return normal_by_id(at::arange(n), {6}, seed, Stream::eval, 3).to(at::kDouble);
  };
  FeatureStatistics real;
  real.add(normal(4000, 1));
  const FrechetReference reference(real);
  const Tensor base = normal(400, 2) + 1;  // every feature off by one: FD is about 6
  EXPECT_EQ(feature_difference(reference, base, base).value, 0);
  EXPECT_NEAR(feature_difference(reference, base, base).ci95, 0, 1e-12);
  // Off by sqrt(2) instead: the distance doubles, as it is that of the means.
  const Value twice = feature_difference(reference, base + (std::sqrt(2.0) - 1), base);
  EXPECT_NEAR(twice.value, 1.0, 0.1);
  // A change of 2 % of the distance is told, although each distance alone is known to 10 % only.
  const Value paired = feature_difference(reference, base + 0.01, base);
  GroupedStatistics alone(20);
  alone.add(base);
  const Value single = frechet_with_interval(reference, alone);
  std::printf("FD %.3f +- %.3f; paired difference %.4f +- %.4f\n", single.value, single.ci95, paired.value,
              paired.ci95);
  EXPECT_NEAR(paired.value, 0.02, 0.004);
  EXPECT_LT(paired.ci95, 0.01);
  EXPECT_GT(single.ci95 / single.value, 0.05);
  EXPECT_THROW(feature_difference(reference, base, base.slice(0, 1)), Error);
}

// --- records

TEST(SampleRecord, PairsNeedTheSameCaptionsAndSeed) {
  const fs::path folder = fs::temp_directory_path() / fmt::format("fewstep_samples_{}", getpid());
  fs::create_directories(folder);
  const SampleRecord baseline{.tokens = at::arange(12).view({4, 3}),
                              .features = at::rand({4, 2}),
                              .caption_keys = caption_keys({"a", "b", "c", "d"}),
                              .seed = 5,
                              .judge = "FD[judge@1a2b3c4d]",
                              .protocol = "p"};
  save_samples(folder / "samples.safetensors", baseline);
  SampleRecord own{.tokens = at::arange(9).view({3, 3}), .caption_keys = caption_keys({"a", "b", "c"}), .seed = 5};
  const SampleRecord cut = load_baseline(folder, own);
  EXPECT_TRUE(cut.tokens.equal(baseline.tokens.slice(0, 0, 3)));
  EXPECT_EQ(cut.features.sizes(), at::IntArrayRef({3, 2}));
  EXPECT_EQ(cut.judge, baseline.judge);
  own.caption_keys = caption_keys({"a", "b", "x"});
  EXPECT_THAT(message_of<ConfigError>([&] { load_baseline(folder, own); }), HasSubstr("sample 2"));
  own.seed = 6;
  EXPECT_THAT(message_of<ConfigError>([&] { load_baseline(folder, own); }), HasSubstr("seed 5"));
  own.tokens = at::arange(8).view({2, 4}), own.seed = 5;
  EXPECT_THAT(message_of<ConfigError>([&] { load_baseline(folder, own); }), HasSubstr("3 tokens"));
  EXPECT_THAT(message_of<DataError>([&] { load_baseline(folder / "nowhere", own); }), HasSubstr("samples.safetensors"));
  fs::remove_all(folder);
}

// --- values and the report

decoding::Decoded two_images() {  // 4 tokens each, in 2 and in 4 passes
  decoding::Decoded d;
  d.codes = at::zeros({2, 4}, at::kLong);
  d.committed_at = at::tensor({0, 0, 1, 1, 0, 1, 2, 3}, at::kLong).view({2, 4});
  d.passes = at::tensor({2, 4}, at::kLong);
  d.entropy = at::arange(8, at::kFloat).view({2, 4});
  d.tried_by_age = at::tensor({100, 80}, at::kLong), d.kept_by_age = at::tensor({25, 60}, at::kLong);
  d.batch_passes = 4, d.seconds = 0.4, d.forward_seconds = 0.3;
  return d;
}

TEST(DecodingValues, AreTheMeanOfRatiosAndTheRatioOfMeans) {
  decoding::DecodingStatistics statistics;
  statistics.add(two_images(), at::full({4}, -1, at::kLong));
  const auto values = decoding_values(statistics, false);
  EXPECT_DOUBLE_EQ(values.at("step_compression").value, 1.5);
  EXPECT_GT(values.at("step_compression").ci95, 0);
  EXPECT_DOUBLE_EQ(values.at("step_compression[ratio of means]").value, 8.0 / 6);
  EXPECT_DOUBLE_EQ(values.at("passes").value, 3);
  EXPECT_NEAR(values.at("ms_per_pass").value, 100, 1e-9);
  EXPECT_NEAR(values.at("tokens_per_second").value, 20, 1e-9);
  EXPECT_NEAR(values.at("decoder_overhead").value, 0.25, 1e-9);
  EXPECT_FALSE(values.contains("step_compression[foreground]"));  // no masks were given
  EXPECT_EQ(decoding_values(statistics, true).at("step_compression").note, "lossy");
  for (const auto& [name, value] : values) {
    EXPECT_NO_THROW(check_metric_name(name, {})) << name;
    EXPECT_TRUE(is_generator_metric(name)) << name;
  }
  EXPECT_FALSE(is_generator_metric("FD_difference[judge@1a2b3c4d]"));
  EXPECT_THROW(check_metric_name("FD_difference", {}), ConfigError);  // says nothing without its encoder
}

TEST(Latency, SpeedUpIsTheGeometricMeanOfTurns) {
  EXPECT_NEAR(speed_up({2, 8}, {1, 1}).value, 4, 1e-12);
  EXPECT_NEAR(speed_up({2, 4, 6}, {1, 2, 3}).ci95, 0, 1e-9);  // each turn twice as fast
  EXPECT_EQ(speed_up({3}, {1}).ci95, 0);
}

TEST(DecodingSection, ShowsNumbersPlotsAndPictures) {
  DecodingEvidence e{.decoder = {}, .options = "decoder=sjd2 window=8", .statistics = {}};
  e.decoder.kind = decoding::DecoderKind::sjd2;
  e.statistics.add(two_images(), at::full({4}, -1, at::kLong));
  e.tokens = 4, e.batch_size = 2, e.inner = 0.2, e.outer = 0.25;
  e.strip_prompts = {"a <dress>"};
  e.strips = {{.images = {at::zeros({1, 8, 8}, at::kByte), at::ones({1, 8, 8}, at::kByte)}, .passes = {1, 4}}};
  e.beside = {
      .prompts = {"one", "two"}, .ar = at::zeros({2, 1, 8, 8}, at::kByte), .own = at::ones({2, 1, 8, 8}, at::kByte)};
  ResultRow row{.label = "samples", .metrics = decoding_values(e.statistics, false)};
  row.latency = {.p50 = 1, .p95 = 2, .batch = 1, .runs = 3, .warmup = 1, .inner_p50 = 0.9};
  row.latency_ar = {.p50 = 3, .p95 = 4, .batch = 1, .runs = 3, .warmup = 1, .inner_p50 = 2.9};
  row.metrics["speed_up[ar]"] = {.value = 3, .ci95 = 0.5, .n = 3};
  row.metrics["draft_stability[age=1]"] = {.value = 0.5, .n = 100};
  row.metrics["draft_stability[age=2]"] = {.value = 0.7, .n = 100};
  const Report report{
      .title = "t", .subtitle = "s", .headlines = decoding_headlines(row), .sections = {decoding_section(e, row)}};
  const std::string html = render(report);
  EXPECT_EQ(check_balanced(html), "");
  for (const char* part :
       {"Exact: the images follow", "Tokens a pass commits", "Acceptance by age", "S against entropy",
        "Drafts that a pass leaves", "a &lt;dress&gt;: after pass 1, 4", "above plain autoregressive decoding",
        "Step compression", "Latency against AR", "3.00 x", "in turns"})
    EXPECT_THAT(html, HasSubstr(part));
  e.decoder.mode = decoding::Sjd2Mode::published;
  EXPECT_THAT(decoding_section(e, row).paragraphs[0], HasSubstr("Lossy"));
}

// --- config

TEST(EvalConfig, TokenMetricsNeedAModelAndTheirDecoder) {
  const std::string head = "name: e\ndata: {kind: fashion_mnist}\n";
  EXPECT_NO_THROW(config::parse<EvalConfig>(head + "model: m\nmetrics: [token_nll]\npaired_with: other\n"));
  EXPECT_THAT(
      message_of<ConfigError>([&] { config::parse<EvalConfig>(head + "images: folder\nmetrics: [token_nll]\n"); }),
      HasSubstr("token metrics need 'model'"));
  EXPECT_THAT(message_of<ConfigError>([&] {
                config::parse<EvalConfig>(head + "sets: [real]\nmetrics: [class_accuracy]\npaired_with: x\n");
              }),
              HasSubstr("paired_with"));
  EXPECT_THAT(
      message_of<ConfigError>([&] { config::parse<EvalConfig>(head + "model: m\nmetrics: [draft_stability]\n"); }),
      HasSubstr("decoder 'ar' keeps no drafts"));
  EXPECT_THAT(message_of<ConfigError>([&] { config::parse<EvalConfig>(head + "model: m\nmetrics: [token_nl]\n"); }),
              HasSubstr("did you mean 'token_nll'"));
}

}  // namespace
}  // namespace fewstep::eval
