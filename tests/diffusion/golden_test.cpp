// Step traces of diffusers' schedulers (tools/golden/schedulers.py). FEWSTEP_SCHEDULERS names a further folder of such folders.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "src/base/files.h"
#include "src/base/json.h"
#include "src/diffusion/scheduler_config.h"
#include "src/diffusion/verify_scheduler.h"
#include "src/io/safetensors.h"
#include "src/tensor/ops.h"
#include "tests/support/message_of.h"
#include "tests/support/scratch.h"

namespace fewstep::diffusion {
namespace {

namespace fs = std::filesystem;
const fs::path kSchedulers = FEWSTEP_SOURCE_DIR "/tests/golden/schedulers";

std::vector<fs::path> golden_folders() {
  std::vector<fs::path> out;
  for (const fs::path& root : {kSchedulers, fs::path(std::getenv("FEWSTEP_SCHEDULERS") ? std::getenv("FEWSTEP_SCHEDULERS") : "")})
    if (!root.empty())
      for (const auto& entry : fs::directory_iterator(root))
        if (fs::exists(entry.path() / "scheduler_config.json")) out.push_back(entry.path());
  std::sort(out.begin(), out.end());
  return out;
}

TEST(SchedulerGolden, EveryTraceAgreesWithDiffusers) {
  const auto folders = golden_folders();
  EXPECT_GE(folders.size(), 20u);
  for (const fs::path& folder : folders) {
    const models::VerifyReport report = verify_scheduler(folder, {.all = true, .limit = {}});
    EXPECT_TRUE(report.passed) << folder.filename() << "\n" << models::to_text(report);
    EXPECT_GE(report.lines.size(), 4u) << folder.filename();
  }
}

// What we write says what diffusers wrote, key by key: loaded there it makes the same scheduler.
TEST(SchedulerGolden, ConfigsAreWrittenAsTheyWereRead) {
  for (const fs::path& folder : golden_folders()) {
    std::string text = read_text(folder / "scheduler_config.json");
    if (const size_t at_ = text.find("-Infinity"); at_ != std::string::npos) text.replace(at_, 9, "null");
    const Json original = Json::parse(text);
    const Json written = scheduler_json(load_scheduler_config(folder));
    const bool flow = original["_class_name"] == "FlowMatchEulerDiscreteScheduler";
    for (const auto& [key, value] : written.items()) {
      if (key == "_diffusers_version") continue;
      if (key == "clip_sample_range" && original["clip_sample"] == false) continue;
      if (!original.contains(key)) continue;  // golden files of an older diffusers
      EXPECT_EQ(value, original[key]) << folder.filename() << ": " << key;
    }
    EXPECT_NE(written.contains("beta_schedule"), flow);
  }
}

TEST(SchedulerGolden, ASpoiltTraceFailsAndNamesItself) {
  testing::ScratchFolder scratch("schedulers");
  const fs::path folder = scratch / "case";
  fs::copy(kSchedulers / "euler_karras", folder);
  TensorMap io;
  for (auto& [name, t] : io::Safetensors(folder / "io.safetensors").all()) io[name] = t.clone();
  io["expected.samples_after_each_step"][2].add_(1.0);  // the rms there is of the order of 10
  io["expected.something_else"] = at::ones({2});
  fs::remove(folder / "io.safetensors");
  io::write_safetensors(folder / "io.safetensors", io);
  const models::VerifyReport report = verify_scheduler(folder, {.all = true, .limit = {}});
  EXPECT_FALSE(report.passed);
  EXPECT_THAT(models::to_text(report), ::testing::ContainsRegex("samples_after_each_step .* FAIL"));
  EXPECT_THAT(models::to_text(report), ::testing::ContainsRegex("something_else .* not produced"));
  EXPECT_THAT(models::to_text(report), ::testing::ContainsRegex("sigmas .* ok"));
}

TEST(SchedulerGolden, AnUnknownArgumentIsAnError) {
  testing::ScratchFolder scratch("schedulers");
  const fs::path folder = scratch / "case";
  fs::copy(kSchedulers / "ddim_eta", folder);
  fs::permissions(folder / "case.json", fs::perms::owner_all);
  write_json(folder / "case.json", Json{{"args", {{"num_inference_steps", 4}, {"strength", 0.5}}}});
  EXPECT_THAT(message_of<DataError>([&] { verify_scheduler(folder); }), ::testing::HasSubstr("'strength'"));
  write_json(folder / "case.json", Json{{"args", {{"num_inference_steps", "four"}}}});
  EXPECT_THAT(message_of<DataError>([&] { verify_scheduler(folder); }), ::testing::HasSubstr("case.json"));
}

}  // namespace
}  // namespace fewstep::diffusion
