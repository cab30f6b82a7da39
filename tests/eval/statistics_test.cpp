// Streaming statistics, Frechet distance, precision/recall and kernel distance against closed forms.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <limits>

#include "eval/frechet.h"
#include "eval/kernel_distance.h"
#include "eval/prdc.h"
#include "eval/statistics.h"
#include "eval/statistics_file.h"
#include "src/base/error.h"
#include "src/io/npz.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"

namespace fewstep::eval {
namespace {

Tensor normal(int64_t n, int64_t d, uint64_t seed) {
  return normal_by_id(at::arange(n, at::kLong), {d}, seed, Stream::eval, 0);
}

// N points whose sample mean and covariance are exactly `mean` and `covariance` (whitened, then coloured by `root`).
Tensor exact_points(int64_t n, const Tensor& mean, const Tensor& root, uint64_t seed) {
  Tensor x = normal(n, mean.size(0), seed).to(at::kDouble);
  x = x - x.mean(0);
  const Tensor factor = at::linalg_cholesky(at::mm(x.t(), x) / static_cast<double>(n - 1));
  const Tensor white = at::linalg_solve_triangular(factor, x.t(), /*upper=*/false).t();
  return at::mm(white, root.t()) + mean;
}

FeatureStatistics statistics_of(const Tensor& x) {
  FeatureStatistics s;
  s.add(x);
  return s;
}

double max_difference(const Tensor& a, const Tensor& b) { return (a - b).abs().max().item<double>(); }

Tensor rotation(int64_t d, uint64_t seed) { return std::get<0>(at::linalg_qr(normal(d, d, seed).to(at::kDouble))); }

TEST(Statistics, StreamingEqualsBatchForAnySplit) {
  const Tensor x = normal(1003, 17, 1) * 3 + 100;  // an offset far above the spread
  const FeatureStatistics whole = statistics_of(x);
  for (int64_t batch : {1, 2, 7, 256, 1000, 5000}) {
    FeatureStatistics parts;
    for (int64_t i = 0; i < 1003; i += batch) parts.add(x.slice(0, i, std::min<int64_t>(i + batch, 1003)));
    parts.add(x.slice(0, 0, 0));  // an empty last batch changes nothing
    EXPECT_EQ(parts.count(), 1003);
    EXPECT_LT(max_difference(parts.mean(), whole.mean()), 1e-11) << "batch " << batch;
    EXPECT_LT(max_difference(parts.covariance(), whole.covariance()), 1e-11) << "batch " << batch;
  }
  EXPECT_LT(max_difference(whole.covariance(), at::cov(x.to(at::kDouble).t())), 1e-10);
}

TEST(Statistics, MergeOrderDoesNotMatter) {
  const Tensor x = normal(500, 9, 2);
  const auto a = statistics_of(x.slice(0, 0, 1)), b = statistics_of(x.slice(0, 1, 200)),
             c = statistics_of(x.slice(0, 200));
  FeatureStatistics abc = a, cba = c, empty;
  abc.merge(b), abc.merge(c), abc.merge(empty);
  cba.merge(b), cba.merge(a);
  empty.merge(cba);
  EXPECT_EQ(empty.count(), 500);
  EXPECT_LT(max_difference(abc.mean(), empty.mean()), 1e-13);
  EXPECT_LT(max_difference(abc.covariance(), empty.covariance()), 1e-13);
  EXPECT_THROW(abc.merge(statistics_of(normal(3, 8, 3))), Error);
}

TEST(Statistics, RemoveUndoesMerge) {
  const Tensor x = normal(300, 7, 3) + 20;
  FeatureStatistics all = statistics_of(x);
  const FeatureStatistics part = statistics_of(x.slice(0, 250)), rest = statistics_of(x.slice(0, 0, 250));
  all.remove(part);
  EXPECT_EQ(all.count(), 250);
  EXPECT_LT(max_difference(all.mean(), rest.mean()), 1e-12);
  EXPECT_LT(max_difference(all.covariance(), rest.covariance()), 1e-12);
  EXPECT_THROW(all.remove(all), Error);
  EXPECT_THROW(all.remove(statistics_of(normal(3, 8, 3))), Error);
}

TEST(Statistics, GroupsAreEveryGthSample) {
  const Tensor x = normal(101, 5, 4);
  GroupedStatistics g(4);
  for (int64_t i = 0; i < 101; i += 30) g.add(x.slice(0, i, std::min<int64_t>(i + 30, 101)));
  EXPECT_TRUE(at::equal(g.rows(), x));
  EXPECT_LT(max_difference(g.total().covariance(), statistics_of(x).covariance()), 1e-13);
  for (int64_t group = 0; group < 4; ++group) {
    const Tensor kept = at::remainder(at::arange(101, at::kLong), 4).ne(group).nonzero().flatten();
    const FeatureStatistics expected = statistics_of(x.index_select(0, kept)), rest = g.all_but(group);
    EXPECT_EQ(rest.count(), expected.count());
    EXPECT_LT(max_difference(rest.mean(), expected.mean()), 1e-13);
    EXPECT_LT(max_difference(rest.covariance(), expected.covariance()), 1e-12);
  }
  g.add(x);  // more after a result
  EXPECT_EQ(g.total().count(), 202);
  EXPECT_LT(max_difference(g.total().mean(), x.to(at::kDouble).mean(0)), 1e-13);
  EXPECT_THROW(g.add(normal(2, 6, 1)), Error);
}

constexpr char kWeights[] = "1a2b3c4d";

TEST(StatisticsFile, BothFormatsKeepMomentsAndProvenance) {
  const FeatureStatistics s = statistics_of(normal(50, 6, 4));
  for (const char* name : {"fewstep_statistics_test.h5", "fewstep_statistics_test.npz"}) {
    const auto path = std::filesystem::temp_directory_path() / name;
    save_statistics(path, s, {.encoder_sha256 = kWeights, .pipeline = "clean", .data_sha256 = "d"});
    const StatisticsFile back = load_statistics(path);
    EXPECT_EQ(back.statistics.count(), 50);
    EXPECT_TRUE(at::equal(back.statistics.mean(), s.mean()));
    EXPECT_LT(max_difference(back.statistics.covariance(), s.covariance()), 1e-15);
    EXPECT_EQ(back.provenance.encoder_sha256, kWeights);
    EXPECT_EQ(back.provenance.data_sha256, "d");
    EXPECT_EQ(back.provenance.version, kFeatureVersion);
    for (const char* tail : {"", ".sha256", ".sha256.ok"}) std::filesystem::remove(path.string() + tail);
  }
}

TEST(StatisticsFile, OtherWeightsPipelinesAndSilenceAreRefusedUnlessForced) {
  const auto message = [](const Provenance& p, bool force = false) -> std::string {
    try {
      check_provenance("ref.h5", p, {.name = "inception", .sha256 = "1a2b3c4d", .pipeline = "clean"}, force);
    } catch (const ConfigError& e) {
      return e.what();
    }
    return "";
  };
  const Provenance good{.encoder_sha256 = "1a2b3c4d", .pipeline = "clean", .version = kFeatureVersion};
  EXPECT_EQ(message(good), "");
  Provenance other = good;
  other.pipeline = "pytorch-fid";
  EXPECT_THAT(message(other), testing::AllOf(testing::HasSubstr("ref.h5"), testing::HasSubstr("'pytorch-fid'"), testing::HasSubstr("--force")));
  EXPECT_EQ(message(other, true), "");
  other = good, other.encoder_sha256 = "99999999";
  EXPECT_THAT(message(other), testing::HasSubstr("made with the weights 99999999"));
  other = good, other.version = "features-0";
  EXPECT_THAT(message(other), testing::HasSubstr("features-0"));
  EXPECT_THAT(message({}), testing::HasSubstr("does not say"));
}

// As pytorch-fid writes them: mu and sigma, nothing else.
TEST(StatisticsFile, OfAnotherToolHasNoCount) {
  const auto path = std::filesystem::temp_directory_path() / "fewstep_foreign.npz";
  io::write_npz(path, {{"mu", at::zeros({3}, at::kDouble)}, {"sigma", at::eye(3, at::kDouble) * 2}});
  const StatisticsFile f = load_statistics(path);
  EXPECT_EQ(f.provenance.count, 0);
  EXPECT_TRUE(at::equal(f.statistics.covariance(), at::eye(3, at::kDouble) * 2));
  io::write_npz(path, {{"mu", at::zeros({3}, at::kDouble)}, {"sigma", at::ones({3, 2}, at::kDouble)}});
  EXPECT_THROW(load_statistics(path), DataError);
  io::write_npz(path, {{"mu", at::zeros({2}, at::kDouble)}, {"sigma", at::tensor({1.0, 0.5, 0.0, 1.0}, at::kDouble).view({2, 2})}});
  EXPECT_THROW(load_statistics(path), DataError);  // not symmetric
  const std::string text = R"({"encoder_sha256": 3})";
  io::write_npz(path, {{"mu", at::zeros({1}, at::kDouble)},
                       {"sigma", at::ones({1, 1}, at::kDouble)},
                       {"provenance", at::tensor(std::vector<uint8_t>(text.begin(), text.end()), at::kByte)}});
  EXPECT_THROW(load_statistics(path), DataError);  // provenance of the wrong type
  std::filesystem::remove(path);
}

// Stands for a group of two: what the other rank sent is given, what this one sends is kept.
struct TwoRanks : dist::World {
  explicit TwoRanks(int rank) { rank_ = rank, size_ = 2; }
  void all_reduce_sum(Tensor&) override { FAIL(); }
  void all_reduce_max(Tensor& t) override { t.fill_(4); }  // D, known to one of the two at least
  void broadcast(Tensor&, int) override { FAIL(); }
  std::vector<Tensor> all_gather(const Tensor& t) override {
    sent = t.clone();
    const Tensor other = received.defined() ? received : at::zeros_like(t);
    return rank_ == 0 ? std::vector<Tensor>{t, other} : std::vector<Tensor>{other, t};
  }
  void barrier() override {}
  void announce_failure(std::string_view) override {}
  Tensor sent, received;
};

TEST(Statistics, RanksEndWithTheSameBits) {
  const Tensor x = normal(101, 4, 8);
  FeatureStatistics first, second, without;
  first.add(x.slice(0, 0, 60)), second.add(x.slice(0, 60));
  TwoRanks zero(0), one(1), probe(1);
  FeatureStatistics copy = second;
  copy.reduce(probe);
  zero.received = probe.sent;
  first.reduce(zero);
  one.received = zero.sent;
  second.reduce(one);
  EXPECT_EQ(first.count(), 101);
  EXPECT_TRUE(at::equal(first.mean(), second.mean()));
  EXPECT_TRUE(at::equal(first.covariance(), second.covariance()));
  EXPECT_LT(max_difference(first.covariance(), statistics_of(x).covariance()), 1e-13);
  TwoRanks idle(0);  // a rank that saw no sample takes part as well
  idle.received = probe.sent;
  without.reduce(idle);
  EXPECT_EQ(without.count(), 41);
}

TEST(Statistics, NotFiniteIsAnErrorThatNamesTheRow) {
  Tensor x = normal(10, 4, 5);
  x[6][2] = std::numeric_limits<float>::quiet_NaN();
  FeatureStatistics s;
  s.add(normal(5, 4, 6));
  try {
    s.add(x);
    FAIL();
  } catch (const NumericError& e) {
    EXPECT_NE(std::string(e.what()).find("row 6"), std::string::npos) << e.what();
  }
  EXPECT_THROW(FeatureStatistics().covariance(), Error);
}

TEST(Frechet, DiagonalGaussians) {
  // |mu1 - mu2|^2 + sum (s1 - s2)^2
  const auto f64 = at::TensorOptions().dtype(at::kDouble);
  const Tensor m1 = at::linspace(0, 1, 8, f64), m2 = at::linspace(2, -1, 8, f64);
  const Tensor s1 = at::linspace(0.5, 2, 8, f64), s2 = at::linspace(3, 0.1, 8, f64);
  const double expected = (at::square(m1 - m2).sum() + at::square(s1 - s2).sum()).item<double>();
  const auto a = statistics_of(exact_points(200, m1, at::diag(s1), 1));
  const auto b = statistics_of(exact_points(300, m2, at::diag(s2), 2));
  EXPECT_NEAR(frechet_distance(a, b), expected, 1e-9);
  EXPECT_NEAR(frechet_distance(b, a), expected, 1e-9);
  EXPECT_NEAR(frechet_distance(a, a), 0, 1e-9);
}

TEST(Frechet, InvariantUnderRotation) {
  const Tensor mean = at::zeros({6}, at::kDouble), shift = at::ones({6}, at::kDouble);
  const Tensor s1 = at::diag(at::linspace(1, 2, 6, at::kDouble)), s2 = at::diag(at::linspace(3, 0.5, 6, at::kDouble));
  const Tensor q = rotation(6, 9);
  const double expected = 6 + at::square(s1 - s2).sum().item<double>();
  const auto a = statistics_of(at::mm(exact_points(100, mean, s1, 1), q));
  const auto b = statistics_of(at::mm(exact_points(100, shift, s2, 2), q));
  EXPECT_NEAR(frechet_distance(a, b), expected, 1e-9);
}

TEST(Frechet, NotCommutingCovariances) {
  // Two dimensions: tr (S1 S2)^1/2 = sqrt(tr S1 S2 + 2 sqrt(det S1 S2)).
  const Tensor root1 = at::tensor({2.0, 0.0, 1.0, 1.0}, at::kDouble).reshape({2, 2});
  const Tensor root2 = at::tensor({1.0, -0.5, 0.0, 0.7}, at::kDouble).reshape({2, 2});
  const Tensor s1 = at::mm(root1, root1.t()), s2 = at::mm(root2, root2.t()), product = at::mm(s1, s2);
  const double det = at::linalg_det(product).item<double>(), trace = product.trace().item<double>();
  const double expected = (s1.trace() + s2.trace()).item<double>() - 2 * std::sqrt(trace + 2 * std::sqrt(det));
  const Tensor zero = at::zeros({2}, at::kDouble);
  EXPECT_NEAR(frechet_distance(statistics_of(exact_points(50, zero, root1, 1)),
                               statistics_of(exact_points(60, zero, root2, 2))),
              expected, 1e-10);
}

TEST(Frechet, RankDeficientMatchesTheNuclearNorm) {
  // N < D: tr (S1^1/2 S2 S1^1/2)^1/2 is the nuclear norm of X1c X2c^T / sqrt((n1 - 1)(n2 - 1)), exact from the
  // features.
  const Tensor a = normal(20, 64, 1).to(at::kDouble), b = (normal(30, 64, 2) * 1.3 + 0.2).to(at::kDouble);
  const Tensor ac = (a - a.mean(0)) / std::sqrt(19.0), bc = (b - b.mean(0)) / std::sqrt(29.0);
  const double nuclear = at::linalg_svdvals(at::mm(ac, bc.t())).sum().item<double>();
  const double expected =
      (at::square(a.mean(0) - b.mean(0)).sum() + at::square(ac).sum() + at::square(bc).sum()).item<double>() -
      2 * nuclear;
  FrechetDetails details;
  EXPECT_NEAR(frechet_distance(statistics_of(a), statistics_of(b), &details), expected, 1e-5);
  EXPECT_LT(details.clipped, 1e-10);
  EXPECT_NEAR(details.mean_term + details.trace_term, expected, 1e-5);
}

// Fewer samples than features: from products of samples instead of D x D matrices, the intervals too.
TEST(Frechet, FewSamplesGiveWhatTheirStatisticsGive) {
  const Tensor samples = normal(40, 64, 2) * 1.3 + 0.2;
  for (const int64_t n : {500, 30}) {  // references of full rank, and singular
    const FrechetReference reference(statistics_of(normal(n, 64, 1)));
    GroupedStatistics g(5);
    g.add(samples.slice(0, 0, 13)), g.add(samples.slice(0, 13));
    std::vector<double> left_out;
    for (int64_t group = 0; group < 5; ++group) left_out.push_back(reference.distance(g.all_but(group)));
    double mean = 0, squares = 0;
    for (double d : left_out) mean += d / 5;
    for (double d : left_out) squares += (d - mean) * (d - mean);
    const Value v = frechet_with_interval(reference, g);
    EXPECT_NEAR(v.value, reference.distance(statistics_of(samples)), 1e-5) << n;
    EXPECT_NEAR(v.ci95, student_t95(4) * std::sqrt(squares * 4 / 5), 1e-4) << n;
    EXPECT_EQ(frechet_difference(reference, g, g).value, 0) << n;
  }
}

TEST(Frechet, SingularReferenceIsTheSameFromBothSides) {
  const auto singular = statistics_of(normal(20, 32, 1)), full = statistics_of(normal(400, 32, 2) * 1.5 + 0.1);
  EXPECT_NEAR(frechet_distance(singular, full), frechet_distance(full, singular), 1e-6);
  EXPECT_NEAR(frechet_distance(singular, singular), 0, 1e-6);
}

TEST(Frechet, WhatIsNoCovarianceIsRefused) {
  const auto f64 = at::TensorOptions().dtype(at::kDouble);
  const auto bad = FeatureStatistics::from_moments(at::zeros({3}, f64), at::diag(at::tensor({1.0, 1.0, -0.1}, f64)), 10);
  const auto good = statistics_of(normal(50, 3, 1));
  EXPECT_THROW(frechet_distance(bad, good), NumericError);
  EXPECT_THROW(frechet_distance(good, bad), NumericError);
}

TEST(Frechet, RefusesOtherDimensions) {
  EXPECT_THROW(frechet_distance(statistics_of(normal(9, 3, 1)), statistics_of(normal(9, 4, 1))), ConfigError);
}

TEST(Frechet, JackknifeIntervalCoversTheSpreadOfRepeats) {
  // Half width against the spread of FD over independent sets of the same size.
  const FrechetReference reference(statistics_of(normal(4000, 8, 100)));
  std::vector<double> values;
  double half_width = 0;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    GroupedStatistics g(20);
    const Tensor x = normal(400, 8, seed) * 1.2;
    for (int64_t i = 0; i < 400; i += 150) g.add(x.slice(0, i, std::min<int64_t>(i + 150, 400)));
    const Value v = frechet_with_interval(reference, g);
    EXPECT_EQ(v.n, 400);
    EXPECT_NEAR(v.value, reference.distance(statistics_of(x)), 1e-10);  // grouping does not change the value
    values.push_back(v.value);
    half_width += v.ci95 / 40;
  }
  double mean = 0, square = 0;
  for (double v : values) mean += v / 40;
  for (double v : values) square += (v - mean) * (v - mean) / 39;
  EXPECT_GT(half_width, 1.2 * std::sqrt(square));
  EXPECT_LT(half_width, 3.5 * std::sqrt(square));
}

TEST(Frechet, StudentT) {
  EXPECT_NEAR(student_t95(1), 12.706, 1e-3);
  EXPECT_NEAR(student_t95(2), 4.303, 1e-3);
  EXPECT_NEAR(student_t95(5), 2.571, 2e-3);
  EXPECT_NEAR(student_t95(19), 2.093, 1e-3);
  EXPECT_NEAR(student_t95(100000), 1.960, 1e-3);
}

TEST(Prdc, EqualSetsAreFullyCovered) {
  const Tensor x = normal(300, 5, 1);
  const Prdc p = prdc(x, x, 3, 64);
  EXPECT_EQ(p.precision, 1);
  EXPECT_EQ(p.recall, 1);
  EXPECT_EQ(p.coverage, 1);
  // Each point lies in its own ball and in those of the points it is a near neighbour of: 1 + k of them on average.
  EXPECT_NEAR(p.density, 4.0 / 3, 1e-9);
}

TEST(Prdc, HalfTheModesGiveHalfTheRecall) {
  // Real: two far clusters of equal size. Samples: the first only. Precision 1, recall near 1/2, never the other way
  // round.
  const Tensor a = normal(200, 3, 1) * 0.1, b = normal(200, 3, 2) * 0.1 + 50;
  const Tensor samples = at::cat({a + 1e-4, a - 1e-4});
  const Prdc p = prdc(at::cat({a, b}), samples);
  EXPECT_GT(p.precision, 0.99);
  EXPECT_NEAR(p.recall, 0.5, 0.01);
  EXPECT_NEAR(p.coverage, 0.5, 0.01);
  const Prdc swapped = prdc(samples, at::cat({a, b}));
  EXPECT_NEAR(swapped.precision, 0.5, 0.01);
  EXPECT_GT(swapped.recall, 0.99);
}

TEST(Prdc, FarSetsShareNothing) {
  const Prdc p = prdc(normal(100, 4, 1), normal(80, 4, 2) + 1000);
  EXPECT_EQ(p.precision + p.recall + p.density + p.coverage, 0);
}

TEST(Prdc, BlocksDoNotChangeTheResult) {
  const Tensor a = normal(157, 6, 1), b = normal(203, 6, 2) + 0.3;
  const Prdc whole = prdc(a, b, 3, 4096), blocks = prdc(a, b, 3, 13);
  EXPECT_EQ(whole.precision, blocks.precision);
  EXPECT_EQ(whole.recall, blocks.recall);
  EXPECT_EQ(whole.density, blocks.density);
  EXPECT_EQ(whole.coverage, blocks.coverage);
  EXPECT_THROW(prdc(a.slice(0, 0, 3), b), ConfigError);
}

TEST(Prdc, RadiusIsTheKthOtherNeighbour) {
  const Tensor line = at::arange(10, at::kFloat).square().unsqueeze(1);  // 0 1 4 9 16 ...
  const Tensor radii = knn_radii(line, 2);
  EXPECT_FLOAT_EQ(radii[0].item<float>(), 4);
  EXPECT_FLOAT_EQ(radii[2].item<float>(), 4);   // from 4: 1 at 3, 0 at 4
  EXPECT_FLOAT_EQ(radii[9].item<float>(), 32);  // from 81: 64 at 17, 49 at 32
}

TEST(KernelDistance, MatchesTheDefinition) {
  const Tensor a = normal(20, 3, 1).to(at::kDouble), b = normal(15, 3, 2).to(at::kDouble) + 0.5;
  const auto k = [](const Tensor& x, const Tensor& y) { return std::pow(at::dot(x, y).item<double>() / 3 + 1, 3); };
  double aa = 0, bb = 0, ab = 0;
  for (int i = 0; i < 20; ++i)
    for (int j = 0; j < 20; ++j) aa += i != j ? k(a[i], a[j]) / (20 * 19) : 0;
  for (int i = 0; i < 15; ++i)
    for (int j = 0; j < 15; ++j) bb += i != j ? k(b[i], b[j]) / (15 * 14) : 0;
  for (int i = 0; i < 20; ++i)
    for (int j = 0; j < 15; ++j) ab += k(a[i], b[j]) / (20 * 15);
  EXPECT_NEAR(kernel_distance(a, b, 7), aa + bb - 2 * ab, 1e-10);
}

}  // namespace
}  // namespace fewstep::eval
