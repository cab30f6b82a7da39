// The --nproc launcher: exit codes, signals, and that no rank outlives it.
#include <gmock/gmock.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <thread>

#include "src/base/error.h"
#include "src/tensor/ops.h"
#include "tests/dist/ranks.h"
#include "tests/dist/scenarios.h"

namespace fewstep::dist {
namespace {

using ::testing::HasSubstr;
using testing::RankResult;
using testing::with_world;

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

std::string note_path(const std::string& name) { return variable("FEWSTEP_TEST_FOLDER") + "/" + name; }
void note(const std::string& name, const std::string& text) {  // complete or not there
  std::ofstream(note_path(name) + ".part") << text;
  std::filesystem::rename(note_path(name) + ".part", note_path(name));
}

// --- scenarios of a launcher, and of the ranks it starts

int launcher() {
  try {
    return launch(std::stoi(variable("FEWSTEP_TEST_NPROC")),
                  {"--scenario=" + variable("FEWSTEP_TEST_RANK"), "one two"});
  } catch (const Error& e) {
    std::cerr << "error: " << e.what() << std::endl;
    return e.exit_code();
  }
}

int rank_sum() {
  return with_world([](World& w) {
    Tensor t = at::full({1}, w.rank() + 1, at::kLong);
    w.all_reduce_sum(t);
    FEW_CHECK(t.item<int64_t>() == w.size() * (w.size() + 1) / 2, "sum is {}", t.item<int64_t>());
    if (w.is_main()) fmt::print(stderr, "sum over {} ranks, {} threads\n", w.size(), variable("OMP_NUM_THREADS"));
  });
}

int rank_error() {
  return with_world([](World& w) {
    if (w.rank() == 1) fail<DataError>("cannot read shard 7");
    while (true) w.barrier();
  });
}

int rank_crash() {
  return with_world([](World& w) {
    if (w.rank() == 1) std::abort();
    while (true) w.barrier();
  });
}

int rank_stuck() {  // rank 0 does not notice that rank 1 failed
  if (variable("RANK") == "1") return 4;
  std::this_thread::sleep_for(std::chrono::seconds(100));
  return 0;
}

volatile std::sig_atomic_t got_signal = 0;

int rank_signal() {
  for (const int s : {SIGTERM, SIGINT}) signal(s, [](int which) { got_signal = which; });
  note("ready." + variable("RANK"), std::to_string(getpid()));
  for (int i = 0; i < 3000 && got_signal == 0; ++i) usleep(10'000);
  note("got." + variable("RANK"), std::to_string(got_signal));
  return 130;
}

// --- the tests

class Launch : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::scratch_folder() + "/" + ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::create_directories(folder_);
  }
  int begin(int nproc, const std::string& rank_scenario, std::map<std::string, std::string> more = {}) {
    more.insert({{"FEWSTEP_TEST_NPROC", std::to_string(nproc)},
                 {"FEWSTEP_TEST_RANK", rank_scenario},
                 {"FEWSTEP_TEST_FOLDER", folder_},
                 {"FEWSTEP_DIST_TIMEOUT", "60"}});
    return testing::start("launcher", more, folder_ + "/log");
  }
  RankResult end(int pid) { return testing::wait_for(pid, folder_ + "/log"); }
  // The text of a note, once it is there.
  std::string await(const std::string& name) {
    for (int i = 0; i < 3000 && !std::filesystem::exists(folder_ + "/" + name); ++i) usleep(10'000);
    std::ifstream file(folder_ + "/" + name);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }
  std::string folder_;
};

TEST_F(Launch, RanksFindEachOther) {
  const RankResult r = end(begin(3, "rank_sum", {{"OMP_NUM_THREADS", "1"}}));
  EXPECT_EQ(r.exit_code, 0) << r.output;
  EXPECT_EQ(r.output, "sum over 3 ranks, 1 threads\n");
}

TEST_F(Launch, OneRank) {
  const RankResult r = end(begin(1, "rank_sum"));
  EXPECT_EQ(r.exit_code, 0) << r.output;
  EXPECT_THAT(r.output, HasSubstr("sum over 1 ranks"));
}

TEST_F(Launch, ReturnsTheFirstFailingRanksCode) {
  const RankResult r = end(begin(3, "rank_error"));
  EXPECT_EQ(r.exit_code, 3) << r.output;
  EXPECT_THAT(r.output, HasSubstr("rank 1 failed: cannot read shard 7; seen by rank 0"));
  EXPECT_THAT(r.output, HasSubstr("rank 1 failed: cannot read shard 7; seen by rank 2"));
}

TEST_F(Launch, ACrashIs128PlusTheSignal) {
  const RankResult r = end(begin(2, "rank_crash"));
  EXPECT_EQ(r.exit_code, 128 + SIGABRT) << r.output;
  EXPECT_THAT(r.output, HasSubstr("rank 1 was ended by signal 6"));
  EXPECT_THAT(r.output, HasSubstr("rank 1 died"));
}

TEST_F(Launch, EndsRanksThatDoNotNotice) {
  const RankResult r = end(begin(2, "rank_stuck"));
  EXPECT_EQ(r.exit_code, 4) << r.output;
}

TEST_F(Launch, ForwardsSignalsOnce) {
  for (const int s : {SIGTERM, SIGINT}) {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    const int pid = begin(2, "rank_signal");
    EXPECT_NE(await("ready.0"), "");
    EXPECT_NE(await("ready.1"), "");
    kill(pid, s);
    const RankResult r = end(pid);
    EXPECT_EQ(r.exit_code, 130) << r.output;
    EXPECT_EQ(await("got.0"), std::to_string(s));
    EXPECT_EQ(await("got.1"), std::to_string(s));
  }
}

bool runs(int pid) {  // neither gone nor a zombie
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  return !text.empty() && text.find(") Z ") == std::string::npos && text.find(") X ") == std::string::npos;
}

TEST_F(Launch, RanksDieWithTheLauncher) {
  const int pid = begin(2, "rank_signal");
  const int first = std::stoi(await("ready.0")), second = std::stoi(await("ready.1"));
  EXPECT_TRUE(runs(first) && runs(second));
  kill(pid, SIGKILL);
  end(pid);
  for (int i = 0; i < 1000 && (runs(first) || runs(second)); ++i) usleep(10'000);
  EXPECT_FALSE(runs(first));
  EXPECT_FALSE(runs(second));
  EXPECT_FALSE(std::filesystem::exists(folder_ + "/got.0"));
}

TEST_F(Launch, RefusesNonsense) {
  RankResult r = end(begin(0, "rank_sum"));
  EXPECT_EQ(r.exit_code, 2);
  EXPECT_THAT(r.output, HasSubstr("--nproc 0"));
  r = end(begin(2, "rank_sum",
                {{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "localhost"}, {"MASTER_PORT", "1234"}}));
  EXPECT_EQ(r.exit_code, 2);
  EXPECT_THAT(r.output, HasSubstr("--nproc 2 inside a run of 2 processes started by torchrun"));
}

}  // namespace

namespace testing {
std::map<std::string, Scenario> launch_scenarios() {
  return {{"launcher", launcher},     {"rank_sum", rank_sum},     {"rank_error", rank_error},
          {"rank_crash", rank_crash}, {"rank_stuck", rank_stuck}, {"rank_signal", rank_signal}};
}
}  // namespace testing
}  // namespace fewstep::dist
