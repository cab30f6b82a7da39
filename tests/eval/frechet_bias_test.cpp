// What the Frechet distance says of two samples of the same Gaussian: bias of the order 1 / N, and nothing else.
// Beside numpy and scipy on the same numbers (tests/golden/frechet, tools/golden/frechet.py).
//
// The table is printed for 128 features; FEWSTEP_BIAS_DIM=512 makes that of 512 (a few seconds):
//   FEWSTEP_BIAS_DIM=512 build/eval_test --gtest_filter='FrechetBias.*'
#include <gtest/gtest.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "eval/frechet.h"
#include "src/base/json.h"
#include "src/tensor/ops.h"
#include "tests/support/numpy_normal.h"

namespace fewstep::eval {
namespace {

// lambda_i proportional to i^-0.8, trace 15.
Tensor spectrum(int64_t dim) {
  const Tensor decay = at::pow(at::arange(1, dim + 1, at::kDouble), -0.8);
  return 15 * decay / decay.sum();
}

Tensor sample(int64_t n, const Tensor& lambda, uint32_t seed) {
  const std::vector<double> values = testing::NumpyNormal(seed).draw(n * lambda.size(0));
  return at::tensor(values, at::kDouble).view({n, lambda.size(0)}) * lambda.sqrt();
}

// To first order in 1 / N: the mean's 2 tr S / N, and of the covariances, with var D_ij = 2 l_i l_j (1 + [i = j]) / N,
// sum_ij D_ij^2 / (2 (l_i + l_j)).
double first_order(const Tensor& lambda, int64_t n) {
  const Tensor product = at::outer(lambda, lambda) / (lambda.unsqueeze(1) + lambda);
  return (2 * lambda.sum() + product.sum() + product.diagonal().sum()).item<double>() / static_cast<double>(n);
}

TEST(FrechetBias, OfTwoSamplesOfOneGaussian) {
  const char* asked = std::getenv("FEWSTEP_BIAS_DIM");
  const int64_t D = asked ? std::atoll(asked) : 128;
  const Json golden = read_json(FEWSTEP_SOURCE_DIR "/tests/golden/frechet/expected.json").at("tables");
  const std::string key = std::to_string(D);
  ASSERT_TRUE(golden.contains(key)) << "FEWSTEP_BIAS_DIM: tools/golden/frechet.py OUT --dim " << key;
  const Tensor lambda = spectrum(D), all_a = sample(20 * D, lambda, 1), all_b = sample(20 * D, lambda, 2);
  // The same table from an independent program, for 512 features.
  const std::map<double, double> published = {{.25, 11.7}, {.5, 8.0}, {1, 4.5}, {2, 2.26},
                                              {5, .90},    {10, .45}, {20, .22}};
  std::printf("D = %s, trace 15\n%6s %6s %16s %16s %16s %16s %9s %9s %8s\n", key.c_str(), "N/D", "N", "features",
              "statistics", "numpy svd", "scipy sqrtm", "|f/svd-1|", "|s/sqrt-1|", "theory");
  double last = 0;
  for (const Json& row : golden[key]) {
    const double ratio = row["ratio"].get<double>(), svd = row["nuclear"].get<double>(),
                 sqrtm = row["sqrtm"].get<double>();
    const int64_t n = row["n"].get<int64_t>();
    const Tensor a = all_a.slice(0, 0, n), b = all_b.slice(0, 0, n);
    FeatureStatistics sa, sb;
    sa.add(a), sb.add(b);
    const double features = frechet_distance_of_features(a, b), statistics = frechet_distance(sa, sb);
    std::printf("%6g %6d %16.12f %16.12f %16.12f %16.12f %9.1e %9.1e %8.4f\n", ratio, static_cast<int>(n), features,
                statistics, svd, sqrtm, std::abs(features / svd - 1), std::abs(statistics / sqrtm - 1),
                first_order(lambda, n));
    EXPECT_NEAR(features, svd, 1e-9 * svd) << "N/D = " << ratio;
    EXPECT_NEAR(statistics, svd, 1e-9 * svd) << "N/D = " << ratio;
    // scipy's own error where the product is singular: its trace is then complex as well.
    EXPECT_NEAR(statistics, sqrtm, (n > D ? 1e-9 : 1e-4) * svd) << "N/D = " << ratio;
    if (ratio >= 5) {
      EXPECT_NEAR(features, first_order(lambda, n), 0.03 * features) << "N/D = " << ratio;
    }
    if (D == 512) {
      EXPECT_NEAR(features, published.at(ratio), 0.03 * published.at(ratio)) << "N/D = " << ratio;
    }
    if (last > 0) {
      EXPECT_LT(features, last);
    }
    last = features;
  }
  EXPECT_GT(last, 0);
}

}  // namespace
}  // namespace fewstep::eval
