// Collectives and failures between real processes. Each scenario below runs in every rank; the tests judge how it
// ended.
#include "src/dist/world.h"

#include <gmock/gmock.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "src/base/error.h"
#include "src/tensor/ops.h"
#include "tests/dist/ranks.h"
#include "tests/dist/scenarios.h"

namespace fewstep::dist {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using testing::RankResult;
using testing::Spawn;
using testing::spawn;
using testing::with_world;

// --- collectives

void expect_equal(const Tensor& got, const Tensor& wanted, const std::string& what) {
  FEW_CHECK(got.sizes() == wanted.sizes() && got.scalar_type() == wanted.scalar_type(), "{}: shape or type", what);
  FEW_CHECK(at::equal(got, wanted), "{}: got {} wanted {}", what, at::sum(got.to(at::kDouble)).item<double>(),
            at::sum(wanted.to(at::kDouble)).item<double>());
}

// Small whole numbers: exact in every type, also after summing.
Tensor pattern(int rank, int64_t n, at::ScalarType type) { return ((at::arange(n) + 3 * rank) % 7).to(type); }

void check_collectives(World& w, int64_t n, at::ScalarType type) {
  const std::string what = fmt::format("{} elements of {}", n, c10::toString(type));
  Tensor sum = at::zeros({n}, type), maximum = pattern(0, n, type);
  for (int r = 0; r < w.size(); ++r) {
    sum += pattern(r, n, type);
    maximum = at::maximum(maximum, pattern(r, n, type));
  }
  Tensor t = pattern(w.rank(), n, type);
  w.all_reduce_sum(t);
  expect_equal(t, sum, "sum of " + what);
  t = pattern(w.rank(), n, type);
  w.all_reduce_max(t);
  expect_equal(t, maximum, "max of " + what);
  for (int root = 0; root < w.size(); ++root) {
    t = pattern(w.rank(), n, type);
    w.broadcast(t, root);
    expect_equal(t, pattern(root, n, type), "broadcast of " + what);
  }
  const auto all = w.all_gather(pattern(w.rank(), n, type));
  FEW_CHECK(static_cast<int>(all.size()) == w.size(), "all_gather gave {} parts", all.size());
  for (int r = 0; r < w.size(); ++r)
    expect_equal(all[static_cast<size_t>(r)], pattern(r, n, type), "all_gather of " + what);
}

void check_layouts(World& w) {
  const Tensor whole = at::zeros({4, 6});
  Tensor column = whole.slice(1, 2, 3);  // not contiguous, and a view: the rest must stay
  column.fill_(w.rank() + 1);
  w.all_reduce_sum(column);
  FEW_CHECK(whole.sum().item<float>() == 4.f * static_cast<float>(w.size() * (w.size() + 1)) / 2, "sum into a view");
  Tensor turned = pattern(w.rank(), 12, at::kDouble).view({3, 4}).t();
  w.broadcast(turned, w.size() - 1);
  expect_equal(turned, pattern(w.size() - 1, 12, at::kDouble).view({3, 4}).t(), "broadcast of a transpose");
  expect_equal(w.all_gather(turned)[0], turned, "all_gather of a transpose");
  Tensor scalar = at::full({}, 2.5, at::kDouble);
  w.all_reduce_sum(scalar);
  FEW_CHECK(scalar.dim() == 0 && scalar.item<double>() == 2.5 * w.size(), "sum of a scalar");
  Tensor leaf = at::ones({3}).requires_grad_();
  w.all_reduce_sum(leaf);
  FEW_CHECK(leaf.requires_grad() && leaf.is_leaf() && leaf[0].item<float>() == static_cast<float>(w.size()), "leaf");
}

int collectives() {
  return with_world([](World& w) {
    for (const auto type : {at::kFloat, at::kDouble, at::kLong, at::kByte, at::kBFloat16})
      for (const int64_t n : {0, 1, 7, 100'003}) check_collectives(w, n, type);
    check_layouts(w);
    for (int i = 0; i < 20; ++i) w.barrier();
  });
}

class Collectives : public ::testing::TestWithParam<int> {};

TEST_P(Collectives, AllTypesAndSizes) {
  for (const RankResult& r : spawn("collectives", {.size = GetParam()})) EXPECT_EQ(r.exit_code, 0) << r.output;
}
INSTANTIATE_TEST_SUITE_P(Sizes, Collectives, ::testing::Values(1, 2, 3, 4));

TEST(World, SingleIsANoOp) {
  const auto w = World::single();
  check_collectives(*w, 5, at::kFloat);
  check_layouts(*w);
  EXPECT_TRUE(w->is_main());
  EXPECT_EQ(w->size(), 1);
}

TEST(World, CudaInACpuBuildSaysWhatToDo) {
  if (at::hasCUDA()) GTEST_SKIP() << "built with CUDA";
  try {
    World::from_environment({.device = DeviceKind::cuda});
    FAIL();
  } catch (const ConfigError& e) {
    EXPECT_THAT(e.what(), HasSubstr("this binary was built without CUDA"));
    EXPECT_THAT(e.what(), HasSubstr("tools/setup.sh --cuda"));
    EXPECT_THAT(e.what(), HasSubstr("-DFEWSTEP_CUDA=ON"));
  }
}

// --- failures. FEWSTEP_TEST_BAD is the rank that fails.

int bad_rank() { return std::atoi(std::getenv("FEWSTEP_TEST_BAD")); }

// A collective that must fail well before the time limit of the group.
void collective_until_failure(World& w) {
  const auto begin = std::chrono::steady_clock::now();
  try {
    while (true) {
      Tensor t = at::ones({1000});
      w.all_reduce_sum(t);
    }
  } catch (const DistributedError&) {
    const std::chrono::duration<double> waited = std::chrono::steady_clock::now() - begin;
    fmt::print(stderr, "noticed after {:.2f} s\n", waited.count());
    FEW_CHECK(waited.count() < 15, "noticed after {:.1f} s only", waited.count());
    throw;
  }
}

int death() {
  return with_world([](World& w) {
    if (w.rank() == bad_rank()) kill(getpid(), SIGKILL);
    collective_until_failure(w);
  });
}

int exception() {
  return with_world([](World& w) {
    if (w.rank() == bad_rank()) fail<DataError>("cannot read shard 7");
    collective_until_failure(w);
  });
}

int unwinding() {  // the World is destroyed by the exception itself
  try {
    const auto w = World::from_environment({.device = DeviceKind::cpu});
    if (w->rank() == bad_rank()) fail<NumericError>("loss is NaN");
    collective_until_failure(*w);
  } catch (const Error& e) {
    fmt::print(stderr, "error: {}\n", e.what());
    return e.exit_code();
  }
  return 0;
}

int hang() {
  return with_world([](World& w) {
    if (w.rank() == bad_rank()) {
      std::this_thread::sleep_for(std::chrono::seconds(9));
      _exit(9);
    }
    Tensor t = at::ones({3});
    w.all_reduce_sum(t);
  });
}

int late_barrier() {  // an orderly end waits for slower ranks
  return with_world([](World& w) {
    if (w.rank() == 1) std::this_thread::sleep_for(std::chrono::milliseconds(700));
  });
}

void expect_survivors_say(const std::vector<RankResult>& ranks, int bad, const std::string& message) {
  for (int r = 0; r < static_cast<int>(ranks.size()); ++r) {
    if (r == bad) continue;
    const RankResult& rank = ranks[static_cast<size_t>(r)];
    EXPECT_EQ(rank.exit_code, 5) << "rank " << r << ": " << rank.output;
    EXPECT_THAT(rank.output, HasSubstr(message)) << "rank " << r;
  }
}

Spawn failing(int size, int bad) { return {.size = size, .extra = {{"FEWSTEP_TEST_BAD", std::to_string(bad)}}}; }

TEST(Failure, ADeadRankIsNamed) {
  for (const auto& [size, bad] : {std::pair{2, 1}, {2, 0}, {3, 1}}) {
    const auto ranks = spawn("death", failing(size, bad));
    EXPECT_EQ(ranks[static_cast<size_t>(bad)].exit_code, 128 + SIGKILL);
    if (bad != 0)
      expect_survivors_say(ranks, bad, fmt::format("rank {} died: its process ended without a message", bad));
    else  // its store dies with it
      expect_survivors_say(ranks, bad, "rank 0");
  }
}

TEST(Failure, AThrownErrorReachesTheOthers) {
  for (const auto& [size, bad] : {std::pair{2, 1}, {2, 0}, {3, 2}, {3, 0}}) {
    const auto ranks = spawn("exception", failing(size, bad));
    EXPECT_EQ(ranks[static_cast<size_t>(bad)].exit_code, 3);
    expect_survivors_say(ranks, bad, fmt::format("rank {} failed: cannot read shard 7", bad));
  }
}

TEST(Failure, AWorldDestroyedByAnExceptionTellsTheOthers) {
  const auto ranks = spawn("unwinding", failing(2, 1));
  EXPECT_EQ(ranks[1].exit_code, 4) << ranks[1].output;
  expect_survivors_say(ranks, 1, "rank 1 failed: an exception ended it");
}

TEST(Failure, AHangingRankIsNamedAfterTheTimeout) {
  Spawn options = failing(3, 1);
  options.timeout_seconds = 2;
  const auto ranks = spawn("hang", options);
  EXPECT_EQ(ranks[1].exit_code, 9);
  expect_survivors_say(ranks, 1, "rank 1 did not take part in all_reduce_sum");
  EXPECT_THAT(ranks[0].output + ranks[2].output, HasSubstr("timed out after 2 s"));
}

TEST(Failure, TorchrunsErrorFile) {
  const std::string path = testing::scratch_folder() + "/error.json";
  Spawn options = failing(2, 1);
  options.extra["TORCHELASTIC_ERROR_FILE"] = path;
  spawn("exception", options);
  const auto content = nlohmann::json::parse(std::ifstream(path));
  EXPECT_THAT(content["message"]["message"].get<std::string>(), HasSubstr("cannot read shard 7"));
  EXPECT_GT(std::stoll(content["message"]["extraInfo"]["timestamp"].get<std::string>()), 1'700'000'000);
}

TEST(Failure, NobodyToConnectTo) {
  const std::string log = testing::scratch_folder() + "/alone";
  const int pid = testing::start("collectives",
                                 {{"RANK", "1"},
                                  {"WORLD_SIZE", "2"},
                                  {"LOCAL_RANK", "1"},
                                  {"MASTER_ADDR", "127.0.0.1"},
                                  {"MASTER_PORT", std::to_string(testing::free_port())},
                                  {"FEWSTEP_DIST_TIMEOUT", "2"}},
                                 log);
  const RankResult r = testing::wait_for(pid, log);
  EXPECT_EQ(r.exit_code, 5) << r.output;
  EXPECT_THAT(r.output, HasSubstr("rank 1 cannot reach rank 0 at 127.0.0.1:"));
}

TEST(World, TheEndWaitsForSlowRanks) {
  for (const RankResult& r : spawn("late_barrier")) {
    EXPECT_EQ(r.exit_code, 0) << r.output;
    EXPECT_EQ(r.output, "");
  }
}

}  // namespace

namespace testing {
std::map<std::string, Scenario> world_scenarios() {
  return {{"collectives", collectives}, {"death", death}, {"exception", exception},
          {"unwinding", unwinding},     {"hang", hang},   {"late_barrier", late_barrier}};
}
}  // namespace testing
}  // namespace fewstep::dist

int main(int argc, char** argv) {
  std::map<std::string, fewstep::dist::testing::Scenario> scenarios = fewstep::dist::testing::world_scenarios();
  scenarios.merge(fewstep::dist::testing::launch_scenarios());
  scenarios.merge(fewstep::dist::testing::data_parallel_scenarios());
  fewstep::dist::testing::run_as_rank(argc, argv, scenarios);
  ::testing::InitGoogleMock(&argc, argv);
  return RUN_ALL_TESTS();
}
