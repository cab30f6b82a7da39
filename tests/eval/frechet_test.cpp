// The Frechet distance against closed forms, against singular values when there are fewer samples than features, and
// on everything a covariance can degenerate to. The table of its bias at small N is in frechet_bias_test.cpp.
#include "eval/frechet.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "eval/compare.h"
#include "src/base/error.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "tests/support/message_of.h"

namespace fewstep::eval {
namespace {

using testing::HasSubstr;

Tensor normal(int64_t n, int64_t d, uint64_t seed) {
  return normal_by_id(at::arange(n, at::kLong), {d}, seed, Stream::eval, 0).to(at::kDouble);
}

Tensor rotation(int64_t d, uint64_t seed) { return std::get<0>(at::linalg_qr(normal(d, d, seed))); }

Tensor rotated(const Tensor& m, const Tensor& q) { return at::mm(at::mm(q, m), q.t()); }

FeatureStatistics statistics_of(const Tensor& x) {
  FeatureStatistics s;
  s.add(x);
  return s;
}

double total(const Tensor& x) { return x.sum().item<double>(); }

// --- closed forms, of moments

struct Gaussian {
  Tensor mean, covariance;
};

// Relative error of both orders; printed, so that a run shows how far below the limit it is.
void expect_distance(const Gaussian& a, const Gaussian& b, double expected, double limit = 1e-9) {
  const auto sa = FeatureStatistics::from_moments(a.mean, a.covariance, 100000);
  const auto sb = FeatureStatistics::from_moments(b.mean, b.covariance, 100000);
  const double ab = frechet_distance(sa, sb) / expected - 1, ba = frechet_distance(sb, sa) / expected - 1;
  std::printf("  closed form %-22.15g relative errors %8.1e %8.1e\n", expected, ab, ba);
  EXPECT_LT(std::abs(ab), limit);
  EXPECT_LT(std::abs(ba), limit);
}

constexpr int64_t kDim = 64;
const auto kDouble = at::TensorOptions(at::kDouble);

struct ClosedForm : testing::Test {
  const Tensor zero = at::zeros({kDim}, kDouble), shift = at::linspace(-1, 2, kDim, kDouble);
  const Tensor q = rotation(kDim, 3);
  const double shift2 = total(at::square(shift));
};

TEST_F(ClosedForm, Isotropic) {
  const Tensor eye = at::eye(kDim, kDouble);
  expect_distance({zero, 2 * eye}, {zero, 0.5 * eye}, kDim * std::pow(std::sqrt(2) - std::sqrt(0.5), 2));
  expect_distance({zero, 2 * eye}, {shift, 1e-8 * eye}, shift2 + kDim * std::pow(std::sqrt(2) - 1e-4, 2));
}

// Standard deviations over three decades, against each other and turned round.
TEST_F(ClosedForm, CommutingWithSteepSpectra) {
  const Tensor s1 = at::logspace(0, -3, kDim, 10, kDouble), s2 = s1.flip(0),
               s3 = 0.5 + at::sin(at::arange(kDim, kDouble));
  for (const Tensor& other : {s2, s3}) {
    const double expected = shift2 + total(at::square(s1 - other.abs()));
    const Tensor c1 = at::diag(s1.square()), c2 = at::diag(other.square());
    expect_distance({zero, c1}, {shift, c2}, expected);
    expect_distance({shift, rotated(c1, q)}, {zero, rotated(c2, q)}, expected);
  }
}

TEST_F(ClosedForm, MeanShiftOnly) {
  const Tensor c = rotated(at::diag(at::logspace(1, -5, kDim, 10, kDouble)), q);
  expect_distance({zero, c}, {shift, c}, shift2);
  expect_distance({zero + 1e6, c}, {shift + 1e6, c}, shift2);
}

TEST_F(ClosedForm, ScaledCovariance) {
  const Tensor c = rotated(at::diag(at::logspace(1, -5, kDim, 10, kDouble)), q);
  for (const double scale : {1e-6, 0.3, 9.0})
    expect_distance({zero, c}, {zero, scale * c}, std::pow(1 - std::sqrt(scale), 2) * c.trace().item<double>());
}

// tr (A B)^1/2 = sqrt(tr AB + 2 sqrt(det AB)) in two dimensions: 32 such pairs on the diagonal, rotated.
TEST_F(ClosedForm, NotCommuting) {
  Tensor c1 = at::zeros({kDim, kDim}, kDouble), c2 = c1.clone();
  double expected = 0;
  for (int64_t i = 0; i < kDim; i += 2) {
    const Tensor r1 = normal(2, 2, 50 + static_cast<uint64_t>(i)), r2 = normal(2, 2, 51 + static_cast<uint64_t>(i));
    const Tensor a = at::mm(r1, r1.t()), b = at::mm(r2, r2.t()), ab = at::mm(a, b);
    const double det = at::linalg_det(a).item<double>() * at::linalg_det(b).item<double>();
    expected += (a.trace() + b.trace()).item<double>() - 2 * std::sqrt(ab.trace().item<double>() + 2 * std::sqrt(det));
    c1.slice(0, i, i + 2).slice(1, i, i + 2).copy_(a), c2.slice(0, i, i + 2).slice(1, i, i + 2).copy_(b);
  }
  EXPECT_GT((at::mm(c1, c2) - at::mm(c2, c1)).abs().max().item<double>(), 1);  // they do not commute
  expect_distance({zero, c1}, {zero, c2}, expected);
  expect_distance({zero, rotated(c1, q)}, {shift, rotated(c2, q)}, expected + shift2);
}

// --- fewer samples than features

// N points in k dimensions with exactly this mean and these standard deviations.
Tensor exact_points(int64_t n, const Tensor& mean, const Tensor& deviations, uint64_t seed) {
  Tensor x = normal(n, mean.size(0), seed);
  x = x - x.mean(0);
  const Tensor factor = at::linalg_cholesky(at::mm(x.t(), x) / static_cast<double>(n - 1));
  return at::linalg_solve_triangular(factor, x.t(), /*upper=*/false).t() * deviations + mean;
}

struct Routes {
  double features, swapped, statistics, swapped_statistics, mixed, mixed_other;
};

Routes all_routes(const Tensor& a, const Tensor& b) {
  const FeatureStatistics sa = statistics_of(a), sb = statistics_of(b);
  return {frechet_distance_of_features(a, b),
          frechet_distance_of_features(b, a),
          frechet_distance(sa, sb),
          frechet_distance(sb, sa),
          FrechetReference(sa).distance_of_features(b),    // statistics of a file, features of the samples
          FrechetReference::of_features(a).distance(sb)};  // the other way round
}

double worst(const Routes& r, double expected) {
  double out = 0;
  for (double d : {r.features, r.swapped, r.statistics, r.swapped_statistics, r.mixed, r.mixed_other})
    out = std::max(out, std::abs(d - expected));
  return out;
}

// 15 dimensions of 64 hold all 20 points: closed form as of commuting Gaussians, not by the code's own formula.
TEST(FewSamples, ClosedFormInASubspace) {
  const Tensor turn = rotation(64, 5).slice(0, 0, 15);  // [15, 64], orthonormal rows
  const Tensor m1 = at::linspace(0, 1, 15, kDouble), m2 = at::linspace(2, -1, 15, kDouble);
  const Tensor s1 = at::linspace(0.5, 2, 15, kDouble), s2 = at::linspace(3, 0.1, 15, kDouble);
  const Tensor a = at::mm(exact_points(20, m1, s1, 1), turn), b = at::mm(exact_points(30, m2, s2, 2), turn);
  const double expected = total(at::square(m1 - m2)) + total(at::square(s1 - s2));
  const Routes r = all_routes(a, b);
  std::printf("  relative errors: features %.1e %.1e, statistics %.1e %.1e, mixed %.1e %.1e\n",
              r.features / expected - 1, r.swapped / expected - 1, r.statistics / expected - 1,
              r.swapped_statistics / expected - 1, r.mixed / expected - 1, r.mixed_other / expected - 1);
  EXPECT_NEAR(r.features, expected, 1e-9 * expected);
  EXPECT_NEAR(r.swapped, expected, 1e-9 * expected);
  // The rank, 15, is below what 20 samples can have: four eigenvalues of rounding stay in, 1e-8 each after the root.
  EXPECT_LT(worst(r, expected), 1e-6 * expected);
}

TEST(FewSamples, OrthogonalSubspacesShareNothing) {
  const Tensor q = rotation(64, 6);
  const Tensor a = at::mm(normal(20, 30, 1), q.slice(0, 0, 30)), b = at::mm(normal(25, 34, 2), q.slice(0, 30));
  const double expected = total(at::square(a.mean(0) - b.mean(0))) + total(at::square(a - a.mean(0))) / 19 +
                          total(at::square(b - b.mean(0))) / 24;
  EXPECT_NEAR(frechet_distance_of_features(a, b), expected, 1e-12 * expected);
  EXPECT_NEAR(frechet_distance(statistics_of(a), statistics_of(b)), expected, 1e-6 * expected);
}

TEST(FewSamples, EveryRouteIsTheNuclearNorm) {
  for (const auto& [n, m] :
       {std::pair<int64_t, int64_t>{2, 2}, {20, 30}, {63, 64}, {64, 65}, {65, 40}, {20, 400}, {400, 7}}) {
    const Tensor mix = normal(64, 64, 9) * 0.3;
    const Tensor a = at::mm(normal(n, 64, 1), mix), b = normal(m, 64, 2) * 1.3 + 0.2;
    const Tensor ac = (a - a.mean(0)) / std::sqrt(n - 1.0), bc = (b - b.mean(0)) / std::sqrt(m - 1.0);
    const double expected = total(at::square(a.mean(0) - b.mean(0))) + total(at::square(ac)) + total(at::square(bc)) -
                            2 * total(at::linalg_svdvals(at::mm(ac, bc.t())));
    const Routes r = all_routes(a, b);
    std::printf("  N = %3d and %3d, D = 64: %.12g, relative error of features %.1e, of the worst route %.1e\n",
                static_cast<int>(n), static_cast<int>(m), expected, std::abs(r.features / expected - 1),
                worst(r, expected) / expected);
    EXPECT_NEAR(r.features, expected, 1e-11 * expected);
    EXPECT_LT(worst(r, expected), 1e-9 * expected);
  }
}

// Without the number of samples the rank is not known: the square root of rounding stays in, within 1e-4.
TEST(FewSamples, StatisticsWithoutTheirCount) {
  const Tensor a = normal(20, 64, 1), b = normal(30, 64, 2) * 1.3 + 0.2;
  const double expected = frechet_distance_of_features(a, b);
  const auto with_count = [](const Tensor& x, int64_t count) {
    const FeatureStatistics s = statistics_of(x);
    return FeatureStatistics::from_moments(s.mean(), s.covariance(), count);
  };
  EXPECT_EQ(with_count(a, 0).rank_limit(), 64);
  EXPECT_EQ(with_count(a, 20).rank_limit(), 19);
  const double unknown = frechet_distance(with_count(a, 0), with_count(b, 0));
  std::printf("  counts unknown: relative error %.1e\n", std::abs(unknown / expected - 1));
  EXPECT_NEAR(unknown, expected, 1e-4 * expected);
  EXPECT_NEAR(frechet_distance(with_count(a, 20), with_count(b, 30)), expected, 1e-9 * expected);
  // A count below the rank that is there is wrong, and nothing of the covariance is thrown away for it.
  const Tensor full = normal(300, 64, 3);
  EXPECT_NEAR(frechet_distance(with_count(full, 10), with_count(b, 30)), frechet_distance_of_features(full, b), 1e-7);
}

// --- equal, and degenerate

struct Named {
  const char* name;
  Tensor x;
};

// Sets of 64 features; a row count on either side of it where that matters.
std::vector<Named> odd_sets() {
  const Tensor few = normal(20, 64, 1), many = normal(200, 64, 2);
  const Tensor direction = normal(1, 64, 3);
  return {{"few", few},
          {"many", many},
          {"few in float32", normal(30, 64, 4).to(at::kFloat)},
          {"all zero", at::zeros({20, 64}, kDouble)},
          {"constant", at::full({200, 64}, 0.1, kDouble)},
          {"two rows", normal(2, 64, 5)},
          {"one rank, few", normal(20, 1, 6) * direction},
          {"one rank, many", normal(200, 1, 7) * direction},
          {"one feature alive", at::cat({normal(200, 1, 8), at::zeros({200, 63}, kDouble)}, 1)},
          {"offset 1e6, few", few * 0.5 + 1e6},
          {"offset 1e6, many", many * 0.5 + 1e6},
          {"nearly collinear, few", normal(20, 1, 9) * direction + 1e-9 * few},
          {"nearly collinear, many", normal(200, 1, 10) * direction + 1e-9 * many},
          {"features twice", many.slice(1, 0, 32).repeat({1, 2})},
          {"tiny", many * 1e-60},
          {"huge", many * 1e60}};
}

double spread(const Tensor& x) {
  const Tensor d = x.to(at::kDouble);
  return total(at::square(d - d.mean(0))) / static_cast<double>(x.size(0) - 1);
}

TEST(Degenerate, EqualSetsAreAtZero) {
  for (const auto& [name, x] : odd_sets()) {
    const double scale = 2 * spread(x);
    const double features = frechet_distance_of_features(x, x);
    const double statistics = frechet_distance(statistics_of(x), statistics_of(x));
    if (std::max(features, statistics) > 1e-15 * scale)
      std::printf("  %-24s relative to the traces: features %.1e, statistics %.1e\n", name, features / scale,
                  statistics / scale);
    EXPECT_GE(features, 0) << name;
    EXPECT_GE(statistics, 0) << name;
    EXPECT_LE(features, 1e-8 * scale) << name;
    EXPECT_LE(statistics, 1e-8 * scale) << name;
  }
}

TEST(Degenerate, EveryPairIsFiniteNotNegativeAndSymmetric) {
  double asymmetry = 0, difference = 0;
  const std::vector<Named> sets = odd_sets();
  for (const auto& [name_a, a] : sets)
    for (const auto& [name_b, b] : sets) {
      const std::string pair = fmt::format("{} / {}", name_a, name_b);
      const Routes r = all_routes(a, b);
      const double scale = std::max({r.features, spread(a) + spread(b), 1e-300});
      for (double d : {r.features, r.swapped, r.statistics, r.swapped_statistics, r.mixed, r.mixed_other}) {
        EXPECT_TRUE(std::isfinite(d)) << pair;
        EXPECT_GE(d, 0) << pair;
      }
      asymmetry = std::max(asymmetry, std::abs(r.features - r.swapped) / scale);
      difference = std::max(difference, worst(r, r.features) / scale);
      EXPECT_NEAR(r.features, r.swapped, 1e-7 * scale) << pair;
      EXPECT_LE(worst(r, r.features), 1e-6 * scale) << pair;
    }
  std::printf("  %d pairs: largest |d(a, b) - d(b, a)| %.1e, largest difference of two routes %.1e, of the traces\n",
              static_cast<int>(sets.size() * sets.size()), asymmetry, difference);
}

TEST(Degenerate, OneFeature) {
  const Tensor a = exact_points(9, at::full({1}, 0.5, kDouble), at::full({1}, 2.0, kDouble), 1);
  const Tensor b = exact_points(5, at::full({1}, -1.0, kDouble), at::full({1}, 0.5, kDouble), 2);
  EXPECT_NEAR(frechet_distance_of_features(a, b), 2.25 + 2.25, 1e-12);
}

// The offset costs the features themselves 1e6 x 2^-53, not the covariance its digits.
TEST(Degenerate, AFarOffsetChangesNothing) {
  for (const int64_t n : {20, 200}) {
    const Tensor a = normal(n, 64, 1), b = normal(n, 64, 2) * 1.3 + 0.2;
    const double near = frechet_distance_of_features(a, b);
    EXPECT_NEAR(frechet_distance_of_features(a + 1e6, b + 1e6), near, 1e-9 * near);
    EXPECT_NEAR(frechet_distance(statistics_of(a + 1e6), statistics_of(b + 1e6)), near, 1e-9 * near);
  }
}

TEST(Degenerate, ErrorsSayWhatIsWrong) {
  const Tensor a = normal(20, 64, 1);
  Tensor broken = a.clone();
  broken[6][2] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THAT(message_of<NumericError>([&] { frechet_distance_of_features(a, broken); }), HasSubstr("row 6"));
  EXPECT_THAT(message_of<ConfigError>([&] { frechet_distance_of_features(a, a.slice(0, 0, 1)); }),
              HasSubstr("1 samples"));
  EXPECT_THAT(message_of<ConfigError>([&] { frechet_distance_of_features(a, normal(20, 63, 1)); }),
              HasSubstr("63 features against 64"));
  EXPECT_THAT(message_of<NumericError>([&] { frechet_distance_of_features(a, a * 1e200); }), HasSubstr("overflow"));
  EXPECT_THAT(message_of<NumericError>([&] { frechet_distance(statistics_of(a), statistics_of(a * 1e160)); }),
              HasSubstr("overflow"));
}

// --- intervals, and what `fewstep eval fid` takes

TEST(FewSamples, IntervalIsThatOfTheGroups) {
  const FrechetReference reference(statistics_of(normal(500, 64, 1)));
  for (const int64_t n : {3, 40, 63, 64, 100}) {
    const Tensor x = normal(n, 64, 2) * 1.2;
    GroupedStatistics groups(20);
    groups.add(x);
    const Value by_features = frechet_with_interval(reference, x), by_groups = frechet_with_interval(reference, groups);
    EXPECT_EQ(by_features.n, n);
    EXPECT_NEAR(by_features.value, by_groups.value, 1e-9 * by_groups.value);
    EXPECT_NEAR(by_features.ci95, by_groups.ci95, 1e-7 * by_groups.ci95);
    EXPECT_EQ(by_features.ci95 > 0, n >= 40);
  }
}

struct NoEncoder : ImageEncoder {
  Encoded encode(const Tensor&) const override { throw Error("not called"); }
  EncoderIdentity identity() const override { return {.name = "judge", .sha256 = std::string(64, '1')}; }
};

CompareSide side(const Tensor& x) {
  CompareSide out{.path = "set", .total = statistics_of(x), .features = x, .logits = {}};
  out.groups.add(x);
  return out;
}

TEST(FewSamples, EvalFidGoesByFeatures) {
  const auto expect_fid = [](const CompareSide& a, const CompareSide& b, const Value& expected) {
    const Json got = compare(CompareMetric::fid, a, b, NoEncoder())["metrics"]["FD[judge@11111111]"];
    EXPECT_NEAR(got["value"].get<double>(), expected.value, 1e-13 * expected.value);
    EXPECT_NEAR(got["ci95"].get<double>(), expected.ci95, 1e-12 * expected.ci95);
  };
  // In 15 dimensions of the 64 the rounding of the statistics is seen: far above these limits.
  const Tensor turn = rotation(64, 5).slice(0, 0, 15), many = normal(300, 64, 3);
  const Tensor few = at::mm(normal(50, 15, 1), turn), other = at::mm(normal(45, 15, 2), turn) * 1.2;
  CompareSide file = side(few);
  file.features = Tensor();
  const FrechetReference features = FrechetReference::of_features(few), statistics(statistics_of(few));
  const Value exact = frechet_with_interval(features, other);
  EXPECT_GT(std::abs(frechet_distance(statistics_of(few), statistics_of(other)) / exact.value - 1), 1e-11);
  expect_fid(side(few), side(other), exact);
  expect_fid(side(many), side(other), frechet_with_interval(FrechetReference(statistics_of(many)), other));
  expect_fid(file, side(other), frechet_with_interval(statistics, other));
  expect_fid(side(other), file, {.value = FrechetReference::of_features(other).distance(file.total)});
  expect_fid(side(few), side(many), frechet_with_interval(features, side(many).groups));
  const CompareSide a = side(many), b = side(normal(200, 64, 4));
  expect_fid(a, b, frechet_with_interval(FrechetReference(a.total), b.groups));
}

}  // namespace
}  // namespace fewstep::eval
