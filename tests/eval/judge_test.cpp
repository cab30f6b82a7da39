// Honest names, qualification, distortions, accuracies, results.json, reports, eval configs: with made-up networks.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "eval/accuracy.h"
#include "eval/compare.h"
#include "eval/image_source.h"
#include "eval/statistics_file.h"
#include "eval/distortions.h"
#include "eval/html.h"
#include "eval/qualification.h"
#include "eval/report.h"
#include "eval/runner.h"
#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/json.h"
#include "src/config/config.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "tests/support/message_of.h"

namespace fewstep::eval {
namespace {

using testing::HasSubstr;
namespace fs = std::filesystem;

const EncoderIdentity kJudge{"judge", "1a2b3c4d" + std::string(56, '0')};

// --- names

TEST(Names, CarryEncoderAndHash) {
  EXPECT_EQ(metric_name("FD", kJudge), "FD[judge@1a2b3c4d]");
  EXPECT_EQ(metric_name("recall", kJudge, "k=3"), "recall[judge@1a2b3c4d,k=3]");
}

TEST(Names, OnlyAllowListedWeightsEarnTheEstablishedName) {
  const OfficialWeights list[] = {{kJudge.sha256, "FD", "FID"}};
  EXPECT_EQ(metric_name("FD", kJudge, {}, list), "FID");
  EXPECT_EQ(metric_name("CLIPScore", kJudge, {}, list), "CLIPScore[judge@1a2b3c4d]");  // listed for another metric
  const EncoderIdentity other{"inception", std::string(64, 'f')};                      // a name is no proof
  EXPECT_EQ(metric_name("FD", other, {}, list), "FD[inception@ffffffff]");
  EXPECT_EQ(metric_name("FD", kJudge), "FD[judge@1a2b3c4d]");  // none of ours earns a published name
}

TEST(Names, TheGateRefusesBareEstablishedNames) {
  const OfficialWeights list[] = {{kJudge.sha256, "FD", "FID"}};
  const std::vector<EncoderIdentity> ours = {kJudge}, none;
  for (const char* name : {"FID", "fid", "CLIP-Score", "clip_score", "KID", "FID[n=5000]"})
    EXPECT_THROW(check_metric_name(name, none), ConfigError) << name;
  EXPECT_NO_THROW(check_metric_name("FID", ours, list));
  EXPECT_THROW(check_metric_name("CLIP-Score", ours, list), ConfigError);
  EXPECT_NO_THROW(check_metric_name("FD[judge@1a2b3c4d]", none));
  EXPECT_NO_THROW(check_metric_name("attribute_accuracy[tone]", none));
}

// --- results.json

Results some_results() {
  Results r;
  r.name = "demo", r.protocol = "N = 10 against 20";
  ResultRow row;
  row.label = "samples";
  row.metrics["FD[judge@1a2b3c4d]"] = {.value = 1.25, .ci95 = 0.1, .n = 10, .floor = 0.5};
  row.metrics["attribute_accuracy"] = {.value = 0.8, .ci95 = 0, .n = 30};
  row.latency = {.p50 = 0.5, .p95 = 0.75, .batch = 1, .runs = 20, .warmup = 3};
  row.steps = 64, row.nfe = 128, row.step_compression = 1, row.seeds = {1};
  r.rows = {row};
  r.provenance = {{"commit", "abc"}, {"host", "h"}};
  r.encoders = {kJudge};
  return r;
}

TEST(Results, SchemaOfTheFile) {
  const Json j = to_json(some_results());
  EXPECT_EQ(j["name"], "demo");
  EXPECT_EQ(j["rows"][0]["label"], "samples");
  const Json& fd = j["rows"][0]["metrics"]["FD[judge@1a2b3c4d]"];
  EXPECT_EQ(fd["value"], 1.25);
  EXPECT_EQ(fd["ci95"], 0.1);
  EXPECT_EQ(fd["n"], 10);
  EXPECT_EQ(fd["floor"], 0.5);
  EXPECT_FALSE(j["rows"][0]["metrics"]["attribute_accuracy"].contains("floor"));
  EXPECT_EQ(j["rows"][0]["seconds"]["p95"], 0.75);
  EXPECT_EQ(j["rows"][0]["steps"], 64);
  EXPECT_EQ(j["rows"][0]["seeds"][0], 1);
  EXPECT_EQ(j["provenance"]["commit"], "abc");
}

TEST(Results, SaveAndLoadAreInverse) {
  const fs::path path = fs::temp_directory_path() / "fewstep_results_test.json";
  Results r = some_results();
  r.qualification = Qualification{.encoder = "FD[judge@1a2b3c4d]",
                                  .ranking = {{"a", {.value = 1, .n = 3}}},
                                  .curves = {{"blur", "px", {1, 2}, {0, 1, 2}}},
                                  .passed = true,
                                  .reasons = {}};
  save_results(path, r);
  EXPECT_EQ(to_json(load_results(path)).dump(), to_json(r).dump());
  fs::remove(path);
}

TEST(Results, RefusesDishonestNamesNanAndBrokenFiles) {
  const fs::path path = fs::temp_directory_path() / "fewstep_results_test2.json";
  Results r = some_results();
  r.rows[0].metrics["FID"] = {.value = 3};
  EXPECT_THROW(save_results(path, r), ConfigError);
  r.rows[0].metrics.erase("FID");
  r.rows[0].metrics["attribute_accuracy"].value = std::nan("");
  EXPECT_THROW(save_results(path, r), NumericError);
  Json broken = to_json(some_results());
  broken["rows"][0]["metrics"]["attribute_accuracy"]["n"] = "many";
  EXPECT_THAT(message_of<DataError>([&] { results_from_json(broken, "x.json"); }),
              HasSubstr("rows[0].metrics.attribute_accuracy: key 'n'"));
}

TEST(Results, NumbersHaveTheDigitsTheIntervalSupports) {
  EXPECT_EQ(format_value({.value = 12.3456, .ci95 = 0.42}), "12.35 \u00b1 0.42");
  EXPECT_EQ(format_value({.value = 0.87654, .ci95 = 0.0123}), "0.877 \u00b1 0.012");
  EXPECT_EQ(format_value({.value = 1234.5, .ci95 = 30}), "1234 \u00b1 30");
}

// --- qualification

Qualification known_order() {
  Qualification q;
  for (double fd : {1.0, 2.0, 3.0, 4.0}) q.ranking.push_back({fmt::format("set {}", fd), {.value = fd}});
  q.curves.push_back({"blur", "px", {1, 2, 3}, {0.1, 0.2, 0.3, 0.4}});
  return q;
}

TEST(Qualification, PassesInOrder) {
  Qualification q = known_order();
  judge(q);
  EXPECT_TRUE(q.passed);
  EXPECT_TRUE(q.reasons.empty());
}

TEST(Qualification, NamesWhatIsOutOfOrder) {
  Qualification q = known_order();
  std::swap(q.ranking[1].fd,
            q.ranking[2].fd);             // a classifier blind to texture: the Gaussian before the reconstructions
  q.curves[0].fd[3] = q.curves[0].fd[2];  // equal is not rising
  judge(q);
  EXPECT_FALSE(q.passed);
  ASSERT_EQ(q.reasons.size(), 2u);
  EXPECT_THAT(q.reasons[0], HasSubstr("set 3 (2) should be farther than set 2 (3)"));
  EXPECT_THAT(q.reasons[1], HasSubstr("blur at level 3"));
  EXPECT_THAT(format_qualification(q), HasSubstr("NOT qualified"));
}

// Smooth random pictures with two "classes" that differ in brightness.
Tensor smooth_images(int64_t n, uint64_t seed) {
  Tensor coarse = normal_by_id(at::arange(n, at::kLong), {1, 5, 5}, seed, Stream::eval, 0);
  Tensor fine = at::upsample_bicubic2d(coarse, {20, 20}, false);
  return (fine * 45 + 120).clamp(0, 255).to(at::kByte);
}

TEST(Qualification, AnEncoderThatSeesPixelsPassesAndABlindOneFails) {
  const Tensor reference = smooth_images(400, 1), real = smooth_images(200, 2);
  QualificationSets sets{.reference = reference,
                         .real = real,
                         .reconstructions = gaussian_blur(real, 0.6),
                         .gaussian = add_noise(real, 25, 3),
                         .independent = add_noise(real, 90, 4)};
  const auto pixels = [](const Tensor& x) {  // local contrasts: differences between neighbours
    const Tensor f = x.to(at::kFloat);
    return at::cat({(f.slice(3, 1) - f.slice(3, 0, -1)).abs().mean({1, 2}), f.mean({1, 2})}, 1);
  };
  const Qualification good = qualify("FD[pixels]", pixels, sets, 0);
  EXPECT_LT(good.ranking[0].fd.value, good.ranking[1].fd.value) << format_qualification(good);
  EXPECT_LT(good.ranking[2].fd.value, good.ranking[3].fd.value) << format_qualification(good);
  ASSERT_EQ(good.curves.size(), 3u);
  for (const auto& curve : good.curves) EXPECT_EQ(curve.fd.size(), 6u) << curve.name;
  const auto blind = [](const Tensor& x) {
    return x.to(at::kFloat).mean({1, 2, 3}).unsqueeze(1).expand({-1, 2}) * at::tensor({1.f, 0.f});
  };
  const Qualification bad = qualify("FD[blind]", blind, sets, 0);
  EXPECT_FALSE(bad.passed);
  sets.gaussian = sets.gaussian.slice(0, 0, 100);
  EXPECT_THAT(message_of<Error>([&] { qualify("x", pixels, sets, 0); }), HasSubstr("must be equal"));
}

TEST(Qualification, LostClassesAreSeen) {
  // Five classes, each a brightness of its own: fewer of them move mean and spread.
  const Tensor labels = at::arange(200, at::kLong).remainder(5);
  const Tensor bright = (labels * 25).view({200, 1, 1, 1});
  const Tensor real = (smooth_images(200, 2).to(at::kLong) / 2 + bright).to(at::kByte);
  const Tensor reference = (smooth_images(200, 1).to(at::kLong) / 2 + bright).to(at::kByte);
  const QualificationSets sets{.reference = reference,
                               .real = real,
                               .reconstructions = gaussian_blur(real, 0.6),
                               .gaussian = add_noise(real, 25, 3),
                               .independent = add_noise(real, 90, 4),
                               .labels = labels};
  const auto mean = [](const Tensor& x) { return at::cat({x.to(at::kFloat).mean({1, 2, 3}).unsqueeze(1), x.to(at::kFloat).std({1, 2, 3}).unsqueeze(1)}, 1); };
  const Qualification q = qualify("FD[mean]", mean, sets, 0);
  ASSERT_EQ(q.curves.size(), 4u);
  const DistortionCurve& drop = q.curves.back();
  EXPECT_EQ(drop.name, "class drop");
  ASSERT_EQ(drop.levels, (std::vector<double>{1, 2, 3}));
  for (size_t i = 1; i < drop.fd.size(); ++i) EXPECT_GT(drop.fd[i], drop.fd[i - 1]) << format_qualification(q);
  const Tensor three = drop_classes(real, labels, 2);
  EXPECT_TRUE(at::equal(three[2], real[2]));
  EXPECT_TRUE(at::equal(three[0], real[2]));  // the first image that is kept
  EXPECT_EQ(three.size(0), 200);
}

TEST(Distortions, GrowWithTheirLevelAndKeepTheShape) {
  const Tensor x = smooth_images(16, 5);
  for (const Distortion& d : distortions()) {
    EXPECT_EQ(d.levels.size(), 5u);
    double last = 0;
    for (double level : d.levels) {
      const Tensor y = d.apply(x, level, 9);
      EXPECT_EQ(y.sizes(), x.sizes());
      EXPECT_EQ(y.scalar_type(), at::kByte);
      const double error = at::square(y.to(at::kFloat) - x.to(at::kFloat)).mean().item<double>();
      EXPECT_GT(error, last) << d.name << " " << level;
      last = error;
    }
  }
  EXPECT_TRUE(at::equal(add_noise(x, 20, 1).slice(0, 0, 3), add_noise(x.slice(0, 0, 3), 20, 1)));  // keyed by sample
}

TEST(Distortions, ClassGaussianKeepsMeanAndCovariance) {
  const Tensor dark = smooth_images(300, 1).slice(2, 0, 6).slice(3, 0, 6) / 2,
               bright = smooth_images(300, 2).slice(2, 0, 6).slice(3, 0, 6);
  const Tensor x = at::cat({dark.to(at::kByte), bright.to(at::kByte)}),
               labels = at::cat({at::zeros({300}, at::kLong), at::ones({300}, at::kLong)});
  const ClassGaussian gaussian(x, labels);
  const Tensor wanted = at::ones({4000}, at::kLong);
  const Tensor drawn = gaussian.sample(wanted, 7).flatten(1).to(at::kDouble),
               given = x.slice(0, 300).flatten(1).to(at::kDouble);
  EXPECT_LT((drawn.mean(0) - given.mean(0)).abs().max().item<double>(), 5);
  const Tensor a = at::cov(drawn.t()), b = at::cov(given.t());
  EXPECT_LT((a - b).norm().item<double>() / b.norm().item<double>(), 0.1);
  EXPECT_TRUE(at::equal(gaussian.sample(wanted.slice(0, 0, 5), 7), gaussian.sample(wanted, 7).slice(0, 0, 5)));
  EXPECT_THROW(ClassGaussian(x, labels - 1), ConfigError);
}

TEST(Distortions, IndependentTokensKeepMarginalsOnly) {
  // Two positions that are always equal, 0 or 1 with probabilities 3/4 and 1/4.
  const Tensor column = at::arange(400, at::kLong).remainder(4).eq(0).to(at::kLong);
  const Tensor drawn = independent_tokens(at::stack({column, column}, 1), 8000, 3).to(at::kDouble);
  EXPECT_NEAR(drawn.mean().item<double>(), 0.25, 0.02);
  EXPECT_NEAR((drawn.select(1, 0) * drawn.select(1, 1)).mean().item<double>(), 0.0625, 0.02);
}

// --- accuracies, through doubles

struct FixedClip : TextImageEncoder {  // the caption's length against the image's first pixel
  Tensor image_embeddings(const Tensor& x) const override { return unit(x.flatten(1).select(1, 0).to(at::kFloat)); }
  Tensor text_embeddings(const std::vector<std::string>& t) const override {
    std::vector<float> n;
    for (const auto& s : t) n.push_back(static_cast<float>(s.size()));
    return unit(at::tensor(n));
  }
  double logit_scale() const override { return 100; }
  int64_t truncated() const override { return 0; }
  EncoderIdentity identity() const override { return {"clip", kJudge.sha256}; }
  static Tensor unit(const Tensor& angle) { return at::stack({angle.cos(), angle.sin()}, 1); }
};

TEST(Accuracy, ClipScoreIsTheClampedMeanAndItsFloorShufflesCaptions) {
  const FixedClip clip;
  const auto metric = make_clip_score({.clip = &clip});
  EvalBatch batch;
  batch.images = at::tensor({1, 3, 4, 2}, at::kByte).reshape({4, 1, 1, 1});
  batch.captions = {"a", "bbb", "c", "dddd"};  // cos 0, 0, 3, 2
  metric->add(batch);
  const auto values = metric->result();
  ASSERT_EQ(values.count("CLIPScore[clip@1a2b3c4d]"), 1u);
  const Value v = values.at("CLIPScore[clip@1a2b3c4d]");
  EXPECT_NEAR(v.value, 50.0, 1e-3);  // two at 100, two negative ones clamped to 0
  EXPECT_EQ(v.n, 4);
  EXPECT_NEAR(v.floor, 100 * (1 + std::cos(1.0) + 0 + std::cos(1.0)) / 4, 1e-3);  // rolled by two: cos 0, -1, 3, -1
  EXPECT_THROW(make_clip_score({}), ConfigError);
}

struct BrightnessJudge : ImageEncoder {
  Encoded encode(const Tensor& x) const override {
    const Tensor mean = x.to(at::kFloat).mean({1, 2, 3});
    return {at::stack({mean, mean.square()}, 1), at::stack({100 - mean, mean - 100}, 1)};
  }
  EncoderIdentity identity() const override { return kJudge; }
};

ImageSet two_classes() {
  ImageSet set;
  set.images = at::cat({at::full({30, 1, 4, 4}, 20, at::kByte), at::full({30, 1, 4, 4}, 220, at::kByte)});
  set.labels = at::cat({at::zeros({30}, at::kLong), at::ones({29}, at::kLong), at::full({1}, -1, at::kLong)});
  set.captions.assign(60, "");
  return set;
}

TEST(Runner, MeasuresEverySetWithEveryMetric) {
  const BrightnessJudge judge;
  ImageSet set = two_classes();
  set.labels[0] = 1;  // one wrong
  const MetricContext context{.judge = &judge};
  const auto values = measure(set, false, {"class_accuracy", "fd"}, context);  // no distribution: fd is left out
  ASSERT_EQ(values.size(), 1u);
  EXPECT_NEAR(values.at("class_accuracy[judge@1a2b3c4d]").value, 58.0 / 59, 1e-9);
  EXPECT_EQ(values.at("class_accuracy[judge@1a2b3c4d]").n, 59);
  EXPECT_THAT(message_of<ConfigError>([&] { measure(set, true, {"fd"}, context); }), HasSubstr("judge"));
  EXPECT_THAT(message_of<ConfigError>([&] { measure(set, true, {"fdd"}, context); }), HasSubstr("did you mean 'fd'"));
}

TEST(Runner, FloorsOnlyAtEqualNAndMarksOnlyTheEncodersNumbers) {
  std::vector<ResultRow> rows(2);
  rows[0].metrics["FD[judge@1a2b3c4d]"] = {.value = 2, .n = 100};
  rows[0].metrics["class_accuracy[judge@1a2b3c4d]"] = {.value = 0.9, .n = 100};
  rows[1].metrics["FD[judge@1a2b3c4d]"] = {.value = 3, .n = 50};
  ResultRow real;
  real.metrics["FD[judge@1a2b3c4d]"] = {.value = 0.3, .n = 100};
  attach_floors(rows, real);
  EXPECT_EQ(rows[0].metrics["FD[judge@1a2b3c4d]"].floor, 0.3);
  EXPECT_TRUE(std::isnan(rows[1].metrics["FD[judge@1a2b3c4d]"].floor));
  mark_unqualified(rows, kJudge);
  EXPECT_EQ(rows[0].metrics["FD[judge@1a2b3c4d]"].note, "encoder not qualified");
  EXPECT_EQ(rows[0].metrics["class_accuracy[judge@1a2b3c4d]"].note, "");
}

TEST(Accuracy, SharesKeepAnIntervalAtTheEnds) {
  EXPECT_NEAR(share(50, 100).ci95, 0.0962, 1e-3);
  EXPECT_GT(share(0, 60).ci95, 0.02);
  EXPECT_EQ(share(0, 0).n, 0);
}

TEST(Runner, Percentiles) {
  EXPECT_EQ(percentile({5, 1, 3, 2, 4}, 0.5), 3);
  EXPECT_EQ(percentile({1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, 0.95), 10);
  EXPECT_EQ(percentile({7}, 0.95), 7);
}

TEST(Encoder, PreparesChannelsAndSizeForEveryImageAlike) {
  const Tensor grey = at::full({2, 1, 28, 28}, 255, at::kByte);
  const Tensor rgb = prepare_images(grey, 3, 32);
  EXPECT_EQ(rgb.sizes(), at::IntArrayRef({2, 3, 32, 32}));
  EXPECT_NEAR(rgb.min().item<double>(), 1, 1e-5);
  EXPECT_EQ(prepare_images(rgb.mul(0).to(at::kByte), 1, 32).size(1), 1);
  EXPECT_THROW(prepare_images(grey.to(at::kFloat), 1, 28), Error);
}

TEST(Compare, FilesOfAFolder) {
  const fs::path folder = fs::temp_directory_path() / "fewstep_compare_test";
  fs::remove_all(folder);
  fs::create_directories(folder / "sub");
  for (const char* name : {"2.png", "10.PNG", ".hidden.png", "sub/a.jpg", "note.txt"})
    write_text_atomic(folder / name, "x");
  EXPECT_EQ(image_files(folder), (std::vector<fs::path>{folder / "10.PNG", folder / "2.png", folder / "sub/a.jpg"}));
  write_text_atomic(folder / "metadata.jsonl", "{\"file_name\":\"2.png\"}\n");
  EXPECT_EQ(image_files(folder), (std::vector<fs::path>{folder / "2.png"}));
  const BrightnessJudge judge;
  EXPECT_THAT(message_of<DataError>([&] { load_side(folder, judge); }), HasSubstr("2.png"));  // not a picture
  FeatureStatistics s;
  s.add(at::rand({5, 2}));
  save_statistics(folder / "s.h5", s, {.encoder_sha256 = std::string(64, 'e')});
  EXPECT_THAT(message_of<ConfigError>([&] { load_side(folder / "s.h5", judge); }), HasSubstr("eeeeeeee"));
  EXPECT_EQ(load_side(folder / "s.h5", judge, {.force = true}).total.count(), 5);
  fs::remove_all(folder);
}

// --- config

TEST(EvalConfig, ReadsAndReportsEveryMistake) {
  auto c = config::parse<EvalConfig>(
      "name: e\nmodel: runs/x\ndata: {kind: fashion_mnist}\nmetrics: [fd, prdc]\njudge: runs/j\n");
  EXPECT_EQ(c.sets, (std::vector<std::string>{"real", "samples"}));
  auto again = config::parse<EvalConfig>(config::to_yaml(c));
  EXPECT_EQ(config::to_yaml(again), config::to_yaml(c));
  const std::string errors = message_of<ConfigError>([] {
    config::parse<EvalConfig>(
        "name: e\ndata: {kind: fashion_mnist}\nmetrics: [fdd]\nsets: [sample]\nimages: a\nmodel: b\nnum_samples: 1\n");
  });
  for (const char* part : {"did you mean 'fd'", "did you mean 'samples'", "not both", "num_samples"})
    EXPECT_THAT(errors, HasSubstr(part));
  EXPECT_THAT(message_of<ConfigError>([] { config::parse<EvalConfig>("name: e\nmetrics: [fd]\n"); }),
              HasSubstr("data"));
}

// --- report

TEST(Html, Base64OfEveryLength) {
  EXPECT_EQ(base64(""), "");
  EXPECT_EQ(base64("f"), "Zg==");
  EXPECT_EQ(base64("fo"), "Zm8=");
  EXPECT_EQ(base64("foo"), "Zm9v");
  EXPECT_EQ(base64("foobar"), "Zm9vYmFy");
  EXPECT_EQ(base64("\xff\xfe\xfd"), "//79");
}

TEST(Html, TheCheckerSeesMistakes) {
  EXPECT_EQ(check_balanced("<p>a<br><img src=\"x\"></p>"), "");
  EXPECT_THAT(check_balanced("<p><b></p></b>"), HasSubstr("</p>"));
  EXPECT_THAT(check_balanced("<div><p></p>"), HasSubstr("<div>"));
}

TEST(Report, IsBalancedEscapedAndSelfContained) {
  const fs::path run = fs::temp_directory_path() / "fewstep_report_test_run";
  fs::create_directories(run);
  write_text_atomic(run / "metrics.jsonl",
                    "{\"step\":1,\"group\":\"train\",\"loss\":3.0}\n{\"step\":2,\"group\":\"train\",\"loss\":2.0}\n{"
                    "\"step\":2,\"group\":\"validation\",\"loss\":2.5}\n{\"ste");
  Report report;
  report.title = "a < b & \"c\"";
  report.subtitle = "<script>alert(1)</script>";
  report.headlines = {{"FD", "1.2", "real 0.3"}};
  Qualification q = known_order();
  q.encoder = "FD[judge@1a2b3c4d]";
  judge(q);
  report.sections = {results_section(some_results()),
                     latency_section(some_results().rows),
                     qualification_section(q),
                     training_section(std::vector<fs::path>{run, "nowhere"}),
                     timing_section({{"train", 60}, {"eval", 30}}),
                     {.heading = "Pictures", .figures = {grid_figure(smooth_images(6, 1), 3, "six <pictures>")}}};
  report.provenance = {{"commit", "abc<>"}};
  const std::string html = render(report);
  EXPECT_EQ(check_balanced(html), "");
  EXPECT_THAT(html, HasSubstr("&lt;script&gt;"));
  EXPECT_EQ(html.find("<script"), std::string::npos);
  for (const char* outside : {"src=\"http", "href=\"http", "url(http", "@import"})
    EXPECT_EQ(html.find(outside), std::string::npos) << outside;
  EXPECT_THAT(html, HasSubstr("data:image/png;base64,iVBOR"));
  EXPECT_THAT(html, HasSubstr("<svg"));
  EXPECT_THAT(html, HasSubstr("real against real at equal N: FD 0.500"));
  EXPECT_THAT(html, HasSubstr("nowhere: no metrics.jsonl"));
  if (const char* keep = std::getenv("FEWSTEP_KEEP_REPORT")) write_report(keep, report);  // to look at it by hand
  fs::remove_all(run);
}

}  // namespace
}  // namespace fewstep::eval
