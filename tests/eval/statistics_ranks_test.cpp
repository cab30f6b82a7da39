// Statistics over real processes: whatever rank saw a sample, all end with what one process has. Starts itself as
// ranks.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "eval/statistics.h"
#include "src/base/error.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "tests/dist/ranks.h"

namespace fewstep::eval {
namespace {

using dist::World;
using dist::testing::RankResult;

constexpr int64_t kCount = 107, kDim = 12;  // 107 is prime: no number of ranks divides it

// Sample i is the same whoever makes it.
Tensor features(const Tensor& ids) { return normal_by_id(ids, {kDim}, 5, Stream::eval, 0).to(at::kDouble) * 3 + 10; }
Tensor ids(int64_t first, int64_t end, int64_t stride = 1) { return at::arange(first, end, stride, at::kLong); }

double relative_frobenius(const Tensor& got, const Tensor& wanted) {
  return (at::linalg_vector_norm(got - wanted) / at::linalg_vector_norm(wanted)).item<double>();
}

// The larger of the mean's and the scatter's relative error; all ranks must hold the same bits.
double check(World& w, const FeatureStatistics& got, const FeatureStatistics& wanted, const std::string& what) {
  FEW_CHECK(got.count() == wanted.count(), "{}: {} samples of {}", what, got.count(), wanted.count());
  const Tensor scatter = got.covariance() * static_cast<double>(got.count() - 1);
  const double mean = relative_frobenius(got.mean(), wanted.mean());
  const double error = relative_frobenius(scatter, wanted.covariance() * static_cast<double>(wanted.count() - 1));
  FEW_CHECK(mean < 1e-12 && error < 1e-12, "{}: relative errors {:.1e} of the mean, {:.1e} of the scatter", what, mean,
            error);
  const Tensor mine = at::cat({got.mean().flatten(), scatter.flatten()});
  for (const Tensor& other : w.all_gather(mine)) FEW_CHECK(at::equal(other, mine), "{}: other bits elsewhere", what);
  return std::max(mean, error);
}

FeatureStatistics of_all() {
  FeatureStatistics s;
  s.add(features(ids(0, kCount)));
  return s;
}

void plain(World& w) {
  const int64_t r = w.rank(), R = w.size();
  FeatureStatistics strided, blocks, first_only, last_only, none;
  // In batches of 7 and 4: a last one of any length.
  for (int64_t i = r; i < kCount; i += 7 * R) strided.add(features(ids(i, std::min(i + 7 * R, kCount), R)));
  for (int64_t i = r * kCount / R; i < (r + 1) * kCount / R; i += 4)
    blocks.add(features(ids(i, std::min(i + 4, (r + 1) * kCount / R))));
  if (r == 0) first_only.add(features(ids(0, kCount)));
  if (r == R - 1) last_only.add(features(ids(0, kCount)));
  for (FeatureStatistics* s : {&strided, &blocks, &first_only, &last_only, &none}) s->reduce(w);
  const FeatureStatistics wanted = of_all();
  const double errors[] = {check(w, strided, wanted, "every R-th"), check(w, blocks, wanted, "blocks"),
                           check(w, first_only, wanted, "all on rank 0"),
                           check(w, last_only, wanted, "all on the last")};
  FEW_CHECK(none.count() == 0, "nothing anywhere gave {} samples", none.count());
  FEW_CHECK(strided.rank_limit() == kDim, "rank limit {}", strided.rank_limit());
  if (w.is_main())
    fmt::print("{} ranks, {} x {}: relative errors: every R-th {:.1e}, blocks {:.1e}, one rank has all {:.1e}\n", R,
               kCount, kDim, errors[0], errors[1], std::max(errors[2], errors[3]));
}

class Ranks : public ::testing::TestWithParam<int> {};

TEST_P(Ranks, HaveTheStatisticsOfOneProcess) {
  for (const RankResult& r : dist::testing::spawn("statistics", {.size = GetParam()})) {
    EXPECT_EQ(r.exit_code, 0) << r.output;
    std::printf("%s", r.output.c_str());
  }
}
INSTANTIATE_TEST_SUITE_P(Sizes, Ranks, ::testing::Values(1, 2, 3));

int statistics() {
  return dist::testing::with_world([](World& w) { plain(w); });
}

}  // namespace
}  // namespace fewstep::eval

int main(int argc, char** argv) {
  fewstep::dist::testing::run_as_rank(argc, argv, {{"statistics", fewstep::eval::statistics}});
  ::testing::InitGoogleMock(&argc, argv);
  return RUN_ALL_TESTS();
}
