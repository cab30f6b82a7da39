// Checkpoints under SIGKILL, corruption and full disks.
#include "src/io/checkpoint.h"

#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <random>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/log.h"
#include "src/io/safetensors.h"
#include "src/tensor/ops.h"
#include "tests/io/scratch.h"

namespace fewstep::io {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

// 8 tensors of `elements` floats in two files and a JSON file, all saying `step`.
void save(const fs::path& run, int64_t step, int64_t keep_last, int64_t elements = 8192) {
  CheckpointWriter writer(checkpoint_path(run, step));
  for (const char* name : {"model/vq", "."}) {
    TensorMap tensors;
    for (int i = 0; i < 4; ++i)
      tensors["t" + std::to_string(i)] = at::full({elements}, static_cast<double>(step), at::kFloat);
    make_directories(writer.folder() / name);
    write_safetensors(writer.folder() / name / "w.safetensors", tensors);
  }
  write_json(writer.folder() / "state.json", {{"step", step}});
  writer.commit();
  publish_checkpoint(run, step, keep_last);
}

// The step that all parts of a checkpoint agree on.
int64_t consistent_step(const fs::path& folder) {
  const int64_t step = read_json(folder / "state.json").at("step").get<int64_t>();
  EXPECT_EQ(folder.filename().string(), fmt::format("step-{:09d}", step));
  for (const char* name : {"model/vq/w.safetensors", "w.safetensors"}) {
    const Safetensors file(folder / name);
    EXPECT_EQ(file.names().size(), 4u);
    for (const auto& [key, tensor] : file.all())
      EXPECT_TRUE(tensor.eq(static_cast<double>(step)).all().item<bool>()) << key;
  }
  return step;
}

std::vector<std::string> listing(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

TEST(Checkpoint, KeepsTheLastOnes) {
  Scratch run;
  EXPECT_FALSE(find_checkpoint(run.path).has_value());
  for (int64_t step : {10, 20, 30}) save(run.path, step, 2);
  EXPECT_EQ(listing(run / "checkpoints"), (std::vector<std::string>{"latest", "step-000000020", "step-000000030"}));
  EXPECT_EQ(find_checkpoint(run.path), checkpoint_path(run.path, 30));
  save(run.path, 30, 2);  // the same step again replaces it
  EXPECT_EQ(consistent_step(*find_checkpoint(run.path)), 30);
  save(run.path, 25, 2);  // the run went back: 30 belongs to what was given up
  EXPECT_EQ(listing(run / "checkpoints"), (std::vector<std::string>{"latest", "step-000000020", "step-000000025"}));
  EXPECT_EQ(find_checkpoint(run.path), checkpoint_path(run.path, 25));
}

TEST(Checkpoint, UncommittedLeavesNothing) {
  Scratch run;
  {
    CheckpointWriter writer(checkpoint_path(run.path, 1));
    write_raw(writer.folder() / "x", "y");
  }
  EXPECT_TRUE(listing(run / "checkpoints").empty());
}

TEST(Checkpoint, StaleTemporariesGoWithTheNextPublish) {
  Scratch run;
  save(run.path, 1, 0);
  write_raw(run / "checkpoints/step-000000002.tmp-99999/w.safetensors", "half");
  write_raw(run / "checkpoints/.latest.tmp-99999-0", "step");
  EXPECT_EQ(find_checkpoint(run.path), checkpoint_path(run.path, 1));
  EXPECT_EQ(listing(run / "checkpoints").size(), 4u);  // reading removes nothing
  save(run.path, 2, 0);
  EXPECT_EQ(listing(run / "checkpoints"), (std::vector<std::string>{"latest", "step-000000001", "step-000000002"}));
}

class Damage : public ::testing::Test {
 protected:
  Damage() {
    for (int64_t step : {1, 2}) save(run_.path, step, 0);
  }
  void expect_fallback(const std::string& reason) {
    EXPECT_THAT(check_checkpoint(checkpoint_path(run_.path, 2)), HasSubstr(reason));
    EXPECT_EQ(find_checkpoint(run_.path), checkpoint_path(run_.path, 1));
  }
  fs::path file(const std::string& name) { return checkpoint_path(run_.path, 2) / name; }
  Scratch run_;
};
TEST_F(Damage, Whole) { EXPECT_EQ(check_checkpoint(checkpoint_path(run_.path, 2)), ""); }
TEST_F(Damage, Truncated) {
  const auto size = fs::file_size(file("w.safetensors"));
  fs::resize_file(file("w.safetensors"), size - 1);
  expect_fallback(fmt::format("w.safetensors: {} bytes, expected {}", size - 1, size));
}
TEST_F(Damage, FlippedByte) {
  std::string bytes = read_text(file("model/vq/w.safetensors"));
  bytes[bytes.size() / 2] ^= 1;
  write_raw(file("model/vq/w.safetensors"), bytes);
  expect_fallback("model/vq/w.safetensors: SHA-256 ");
}
TEST_F(Damage, MissingFile) {
  fs::remove(file("state.json"));
  expect_fallback("state.json: missing");
}
TEST_F(Damage, MissingManifest) {
  fs::remove(file("manifest.json"));
  expect_fallback("manifest.json: missing");
}
TEST_F(Damage, CorruptManifests) {
  for (const char* text :
       {"", "{", "[]", "{\"format\":1}", "{\"format\":1,\"files\":{\"w.safetensors\":3}}",
        "{\"format\":1,\"files\":{\"w.safetensors\":{\"size\":\"x\",\"sha256\":1}}}", "{\"format\":2,\"files\":{}}"}) {
    write_raw(file("manifest.json"), text);
    expect_fallback("manifest.json");
  }
}
TEST_F(Damage, LatestPointsNowhere) {
  for (const char* text : {"step-000000077\n", "", "../../etc", "step-", "step-00x"}) {
    write_raw(run_ / "checkpoints/latest", text);
    EXPECT_EQ(find_checkpoint(run_.path), checkpoint_path(run_.path, 2)) << text;
  }
}
TEST_F(Damage, BothTorn) {
  for (int64_t step : {1, 2}) fs::remove(checkpoint_path(run_.path, step) / "state.json");
  EXPECT_FALSE(find_checkpoint(run_.path).has_value());
}

TEST(Checkpoint, SurvivesKillsAtRandomMoments) {
  Scratch run;
  log::set_level(log::Level::error);
  const auto start = std::chrono::steady_clock::now();
  save(run.path, 1, 2);
  // Kills within the first ten saves or so, however slow this disk is at the moment.
  const std::chrono::duration<double, std::micro> one = std::chrono::steady_clock::now() - start;
  const auto longest = static_cast<useconds_t>(std::clamp(10 * one.count(), 250e3, 600e3));
  std::mt19937 random(7);
  int64_t last = 1, torn = 0;
  for (int kill_count = 0; kill_count < 50; ++kill_count) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      at::set_num_threads(1);  // OpenMP's threads do not survive a fork
      // Every step twice: the second time it replaces a folder that `latest` points to.
      for (int64_t step = last;; ++step)
        for (int twice = 0; twice < 2; ++twice) save(run.path, step, 2);
    }
    ::usleep(std::uniform_int_distribution<useconds_t>(0, longest)(random));
    ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the writer ended by itself with status " << status;

    const auto found = find_checkpoint(run.path);
    ASSERT_TRUE(found.has_value()) << "after kill " << kill_count;
    ASSERT_EQ(check_checkpoint(*found), "");
    const int64_t step = consistent_step(*found);
    EXPECT_GE(step, last);
    last = step;
    for (const std::string& name : listing(run / "checkpoints")) torn += name.find(".tmp-") != std::string::npos;
  }
  EXPECT_GT(last, 1) << "no writer got far enough to be a test";
  EXPECT_GT(torn, 0) << "no kill hit a checkpoint being written";
  std::cout << "50 kills: step " << last << " reached, " << torn << " unfinished folders seen\n";
}

// Runs `body` in a child process; its exit code is returned, its text goes to `text`.
int in_child(const std::function<int(std::string&)>& body, std::string& text) {
  int pipe_ends[2];
  EXPECT_EQ(::pipe(pipe_ends), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    at::set_num_threads(1);
    std::string message;
    const int code = body(message);
    [[maybe_unused]] const ssize_t n = ::write(pipe_ends[1], message.data(), message.size());
    ::_exit(code);
  }
  ::close(pipe_ends[1]);
  char buffer[4096];
  for (ssize_t n; (n = ::read(pipe_ends[0], buffer, sizeof buffer)) > 0;) text.append(buffer, static_cast<size_t>(n));
  ::close(pipe_ends[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

int save_expecting_failure(const fs::path& run, std::string& message) {
  try {
    save(run, 2, 1, 1 << 18);  // 2 x 4 MB
    return 0;
  } catch (const DataError& e) {
    message = e.what();
    return 3;
  }
}

void expect_first_is_whole(const fs::path& run) {
  EXPECT_EQ(find_checkpoint(run), checkpoint_path(run, 1));
  EXPECT_EQ(consistent_step(checkpoint_path(run, 1)), 1);
  EXPECT_EQ(listing(run / "checkpoints"), (std::vector<std::string>{"latest", "step-000000001"}));
}

TEST(Checkpoint, FileSizeLimitLeavesTheLastGoodOne) {
  Scratch run;
  save(run.path, 1, 1);
  std::string message;
  const int code = in_child(
      [&](std::string& text) {
        ::signal(SIGXFSZ, SIG_IGN);
        const rlimit limit{400'000, 400'000};
        ::setrlimit(RLIMIT_FSIZE, &limit);
        return save_expecting_failure(run.path, text);
      },
      message);
  EXPECT_EQ(code, 3);
  EXPECT_THAT(message, HasSubstr("w.safetensors"));
  EXPECT_THAT(message, HasSubstr("File too large"));
  expect_first_is_whole(run.path);
}

TEST(Checkpoint, FullDiskLeavesTheLastGoodOne) {
  Scratch run;
  if (::mount("tmpfs", run.path.c_str(), "tmpfs", 0, "size=2m") != 0)
    GTEST_SKIP() << "a small tmpfs cannot be mounted here (" << std::strerror(errno)
                 << "); the limit test above stands for it";
  save(run.path, 1, 1);
  std::string message;
  EXPECT_EQ(in_child([&](std::string& text) { return save_expecting_failure(run.path, text); }, message), 3);
  EXPECT_THAT(message, HasSubstr("w.safetensors"));
  EXPECT_THAT(message, HasSubstr("No space left on device"));
  expect_first_is_whole(run.path);
  ::umount2(run.path.c_str(), MNT_DETACH);
}

}  // namespace
}  // namespace fewstep::io
