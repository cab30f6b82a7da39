// Metrics against the packages that define them in practice (tests/golden/metrics, tools/golden/metrics.py).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ATen/CPUGeneratorImpl.h>

#include <nlohmann/json.hpp>

#include "eval/frechet.h"
#include "eval/inception_score.h"
#include "eval/kernel_distance.h"
#include "eval/numpy_random.h"
#include "eval/prdc.h"
#include "src/base/error.h"
#include "src/base/json.h"
#include "src/base/text.h"
#include "src/io/safetensors.h"
#include "src/tensor/ops.h"

namespace fewstep::eval {
namespace {

class Reference : public testing::Test {
 protected:
  const std::filesystem::path folder = FEWSTEP_SOURCE_DIR "/tests/golden/metrics";
  const TensorMap io = io::Safetensors(folder / "io.safetensors").all();
  const Json values = read_json(folder / "expected.json").at("values");
  const Tensor a = io.at("a"), b = io.at("b");
  double value(const char* name) const { return values.at(name).get<double>(); }
};

TEST_F(Reference, PermutationsAreNumpys) {
  int checked = 0;
  for (const auto& [name, expected] : io) {
    const auto parts = split(name, '.');  // permutation.N.SEED
    if (parts[0] != "permutation") continue;
    const auto order = NumpyRandom(static_cast<uint32_t>(std::stoul(parts[2]))).permutation(std::stoll(parts[1]));
    EXPECT_TRUE(at::tensor(order, at::kLong).equal(expected)) << name;
    ++checked;
  }
  EXPECT_EQ(checked, 4);
}

TEST_F(Reference, InceptionScore) {
  const MeanStd s = inception_score(io.at("logits"));
  EXPECT_NEAR(s.mean, value("inception_score_mean"), 1e-9);
  EXPECT_NEAR(s.std, value("inception_score_std"), 1e-9);
  EXPECT_GT(std::abs(inception_score(io.at("logits"), 10, false).mean - s.mean), 1e-4);  // the order matters
  EXPECT_THROW(inception_score(io.at("logits").narrow(0, 0, 9)), ConfigError);
}

// Uniform answers: nothing is told, the score is 1. Certain and evenly spread ones: as many as there are classes.
TEST(InceptionScore, EndsOfTheScale) {
  EXPECT_NEAR(inception_score(at::zeros({50, 7}), 5).mean, 1.0, 1e-12);
  EXPECT_NEAR(inception_score(50 * at::eye(7).repeat({10, 1}), 1).mean, 7.0, 1e-6);
}

TEST_F(Reference, KernelDistanceOnTheSameSubsets) {
  const MeanStd kid = kid_subsets(a, b, 20, 50, 2020);
  EXPECT_NEAR(kid.mean, value("kernel_inception_distance_mean"),
              1e-6 * std::abs(value("kernel_inception_distance_mean")));
  EXPECT_NEAR(kid.std, value("kernel_inception_distance_std"), 1e-6 * std::abs(value("kernel_inception_distance_std")));
  EXPECT_THROW(kid_subsets(a, b, 20, 121), ConfigError);
}

TEST_F(Reference, PrecisionAndRecall) {
  const Prdc p = prdc(/*real=*/b, /*samples=*/a, 3);
  EXPECT_NEAR(p.precision, value("precision"), 1e-6);
  EXPECT_NEAR(p.recall, value("recall"), 1e-6);
  EXPECT_GT(std::abs(p.precision - p.recall), 0.01);  // else they could be exchanged
}

TEST_F(Reference, Cmmd) {
  EXPECT_NEAR(cmmd(a, b), value("cmmd"), 1e-9 * value("cmmd"));
  EXPECT_NEAR(cmmd(a, b, 7), cmmd(a, b), 1e-9);
  EXPECT_NEAR(cmmd(a, a), 0, 1e-9);
}

TEST_F(Reference, FrechetDistance) {
  FeatureStatistics sa, sb;
  sa.add(a), sb.add(b);
  EXPECT_NEAR(frechet_distance(sa, sb), value("frechet_distance"), 1e-9 * value("frechet_distance"));
}

// Two samples of one Gaussian in 16 dimensions: the distance at N = 400 is bias of the order 1 / N, its extrapolation
// is not.
TEST(FrechetInfinity, RemovesTheSampledSidesBias) {
  constexpr int64_t kDim = 16, kCount = 400;
  const auto normal = [](int64_t n, int64_t key) {
    at::Generator g = at::detail::createCPUGenerator(static_cast<uint64_t>(key));
    return at::randn({n, kDim}, g, at::TensorOptions(at::kDouble));
  };
  FeatureStatistics large;
  large.add(normal(200000, 1));
  const FrechetReference reference(large);
  double raw = 0, extrapolated = 0;
  for (int64_t trial = 0; trial < 20; ++trial) {
    const Tensor x = normal(kCount, 100 + trial);
    FeatureStatistics s;
    s.add(x);
    raw += reference.distance(s) / 20, extrapolated += frechet_infinity(reference, x).value / 20;
  }
  EXPECT_GT(raw, 0.1);
  EXPECT_LT(std::abs(extrapolated), 0.25 * raw);
  EXPECT_THROW(frechet_infinity(reference, normal(3, 5)), ConfigError);
}

// Nominal 95 % over 300 trials of two Gaussians with a known distance, at N / D of 5 and 20: what is covered is the
// expected distance at that N, which holds the bias of 1 / N.
TEST(FrechetInterval, CoversTheExpectedDistance) {
  constexpr int64_t kDim = 12, kTrials = 300;
  at::Generator g = at::detail::createCPUGenerator(11);
  const auto normal = [&](int64_t n) { return at::randn({n, kDim}, g, at::TensorOptions(at::kDouble)); };
  const Tensor scale = at::linspace(0.5, 1.5, kDim, at::kDouble), shift = at::linspace(0, 0.6, kDim, at::kDouble);
  FeatureStatistics large;
  large.add(normal(200000));
  const FrechetReference reference(large);
  for (const int64_t ratio : {5, 20}) {
    std::vector<Value> values;
    double expected = 0;
    for (int64_t t = 0; t < kTrials; ++t) {
      GroupedStatistics s(20);
      s.add(normal(ratio * kDim) * scale + shift);
      values.push_back(frechet_with_interval(reference, s));
      expected += values.back().value / kTrials;
    }
    int64_t covered = 0;
    for (const Value& v : values) covered += std::abs(v.value - expected) <= v.ci95;
    EXPECT_GE(covered, static_cast<int64_t>(0.92 * kTrials)) << "N / D = " << ratio;
    EXPECT_LE(covered, static_cast<int64_t>(0.98 * kTrials)) << "N / D = " << ratio;
  }
}

}  // namespace
}  // namespace fewstep::eval
