// A COCO protocol from the command line: killed, started again, and on two processes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <map>
#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/json.h"
#include "tests/support/process.h"
#include "tests/support/small_coco.h"
#include "tests/support/small_models.h"

namespace fewstep {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;
using testing::Child;

class ProtocolCli : public ::testing::Test {
 protected:
  ProtocolCli() {
    fs::remove_all(root_);
    support::write_small_coco(root_ / "coco", 24);
    support::write_small_pipeline(root_ / "model");
    write_text_atomic(root_ / "coco.yaml",
                      fmt::format("name: coco\nprotocol: coco2017-5k\nannotations: {0}/coco/captions_val2017.json\n"
                                  "images: {0}/coco/val2017\nrun: {0}/model\ncache: {0}/cache\nthreads: 1\n"
                                  "encoders: {{inception: {1}/tests/golden/fid_inception_slim16}}\n"
                                  "metrics: [fid, kid]\ngenerate: {{batch_size: 1}}\n",
                                  root_.string(), FEWSTEP_SOURCE_DIR));
  }
  ~ProtocolCli() override { fs::remove_all(root_); }
  std::vector<std::string> arguments(const std::string& out, const std::vector<std::string>& more = {}) const {
    std::vector<std::string> a = {FEWSTEP_BINARY, "eval", (root_ / "coco.yaml").string(),
                                  "out=" + (root_ / out).string()};
    a.insert(a.end(), more.begin(), more.end());
    return a;
  }
  std::map<std::string, std::string> pictures(const std::string& out) const {
    std::map<std::string, std::string> found;
    if (fs::exists(root_ / out / "samples"))
      for (const auto& entry : fs::directory_iterator(root_ / out / "samples"))
        if (entry.path().extension() == ".png") found[entry.path().filename()] = read_text(entry.path());
    return found;
  }
  double metric(const std::string& out, const std::string& start) const {
    const Json row = read_json(root_ / out / "results.json")["rows"][0];
    for (const auto& [name, value] : row["metrics"].items())
      if (name.starts_with(start)) return value["value"].get<double>();
    return std::numeric_limits<double>::quiet_NaN();
  }
  const fs::path root_ = fs::temp_directory_path() / fmt::format("fewstep-protocol-cli-{}", ::getpid());
};

TEST_F(ProtocolCli, KilledAndStartedAgainDrawsOnlyWhatIsMissing) {
  Child killed(arguments("run"), root_);
  ASSERT_TRUE(killed.wait_until([&] { return pictures("run").size() >= 5; })) << killed.output();
  killed.signal(SIGKILL);
  killed.wait();
  const auto before = pictures("run");
  ASSERT_LT(before.size(), 24u) << "the kill came too late to show anything";
  std::map<std::string, fs::file_time_type> times;
  for (const auto& [name, bytes] : before) times[name] = fs::last_write_time(root_ / "run/samples" / name);
  const auto finished = Child(arguments("run"), root_).wait();
  EXPECT_EQ(finished.code, 0) << finished.output;
  EXPECT_THAT(finished.output, HasSubstr("of 24 samples are there"));
  const auto after = pictures("run");
  EXPECT_EQ(after.size(), 24u);
  int64_t kept = 0;
  for (const auto& [name, time] : times) {
    EXPECT_EQ(after.at(name), before.at(name)) << name;
    kept += fs::last_write_time(root_ / "run/samples" / name) == time;
  }
  EXPECT_GE(kept, static_cast<int64_t>(times.size()) - 1);  // the one that was being noted down may be drawn twice

  const auto whole = Child(arguments("whole"), root_).wait();
  EXPECT_EQ(whole.code, 0) << whole.output;
  EXPECT_EQ(pictures("whole"), after);
  EXPECT_DOUBLE_EQ(metric("whole", "FD["), metric("run", "FD["));
}

TEST_F(ProtocolCli, TwoProcessesMeasureWhatOneDoes) {
  EXPECT_EQ(Child(arguments("one"), root_).wait().code, 0);
  fs::remove_all(root_ / "cache");
  const auto two = Child(arguments("two", {"--nproc", "2"}), root_).wait();
  EXPECT_EQ(two.code, 0) << two.output;
  EXPECT_EQ(pictures("two"), pictures("one"));
  EXPECT_NEAR(metric("two", "FD["), metric("one", "FD["), 1e-4 * metric("one", "FD["));
  EXPECT_NEAR(metric("two", "KD["), metric("one", "KD["), 1e-4 * metric("one", "KD["));
  EXPECT_TRUE(fs::exists(root_ / "two/samples/drawn-1.jsonl"));
}

TEST_F(ProtocolCli, OtherSettingsInTheSameFolderAreRefused) {
  EXPECT_EQ(Child(arguments("run", {"limit=3"}), root_).wait().code, 0);
  const auto other = Child(arguments("run", {"limit=3", "seed=5"}), root_).wait();
  EXPECT_EQ(other.code, 2);
  EXPECT_THAT(other.output, HasSubstr("holds samples of another evaluation (seed is 0, now 5)"));
  const auto limit = Child(arguments("run", {"--nproc", "2", "limit=1"}), root_).wait();
  EXPECT_EQ(limit.code, 2);
  EXPECT_THAT(limit.output, HasSubstr("prompts is 3, now 1"));
}

}  // namespace
}  // namespace fewstep
