#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/hash.h"
#include "src/base/json.h"
#include "src/base/log.h"
#include "src/base/parallel.h"
#include "src/base/philox.h"
#include "src/base/progress.h"
#include "src/base/queue.h"
#include "src/base/signals.h"
#include "src/base/table.h"
#include "src/base/text.h"
#include "src/base/version.h"

namespace fewstep {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::StartsWith;

class Files : public testing::Test {
 protected:
  Files() : folder_(fs::temp_directory_path() / fmt::format("fewstep_base_{}", ::getpid())) {
    fs::create_directories(folder_);
  }
  ~Files() override { fs::remove_all(folder_); }
  std::vector<std::string> names() const {
    std::vector<std::string> out;
    for (const auto& e : fs::directory_iterator(folder_)) out.push_back(e.path().filename().string());
    std::sort(out.begin(), out.end());
    return out;
  }
  const fs::path folder_;
};

template <class F>
std::string data_error(const F& f) {
  try {
    f();
  } catch (const DataError& e) {
    return e.what();
  }
  return "(no error)";
}

// Runs `f` in a child process, so that limits, signals and stderr of this one stay as they are. Gives (status, stderr).
std::pair<int, std::string> in_child(const std::function<int()>& f) {
  int ends[2];
  if (::pipe(ends) != 0) return {-1, "no pipe"};
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(ends[1], STDERR_FILENO);
    ::close(ends[0]);
    ::_exit(f());
  }
  ::close(ends[1]);
  std::string text;
  char buffer[512];
  for (ssize_t n; (n = ::read(ends[0], buffer, sizeof buffer)) > 0;) text.append(buffer, static_cast<size_t>(n));
  ::close(ends[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  return {status, text};
}

TEST(Text, NearestWordCountsSwapsAsOneEdit) {
  const std::vector<std::string> known = {"steps", "seed", "name", "generator", "optimizer"};
  EXPECT_EQ(nearest("stpes", known), "steps");
  EXPECT_EQ(nearest("generater", known), "generator");
  EXPECT_EQ(nearest("optimiser", known), "optimizer");
  EXPECT_EQ(nearest("sead", known), "seed");
  EXPECT_EQ(nearest("zzz", known), "");
  EXPECT_EQ(nearest("", known), "");
  EXPECT_EQ(nearest("x", std::vector<std::string>{"y"}), "");  // every letter wrong is not close
  EXPECT_EQ(nearest(std::string(100000, 'a'), known), "");
  EXPECT_EQ(not_one_of("nam", known),
            "'nam' is not one of steps, seed, name, generator, optimizer (did you mean 'name'?)");
  EXPECT_EQ(not_one_of("x", {}), "'x' is not one of (nothing)");
}

TEST(Text, SplitTrimLowerEscape) {
  EXPECT_EQ(split("", ','), std::vector<std::string>{""});
  EXPECT_EQ(split("a,,b,", ','), (std::vector<std::string>{"a", "", "b", ""}));
  EXPECT_EQ(trim(" \t a b \r\n"), "a b");
  EXPECT_EQ(trim(" \n"), "");
  EXPECT_EQ(to_lower("AbZ\xC3\x84"), "abz\xC3\x84");
  EXPECT_EQ(escape_html("<a href=\"x\">&'</a>"), "&lt;a href=&quot;x&quot;&gt;&amp;&#39;&lt;/a&gt;");
}

TEST(Text, NumbersForPeople) {
  EXPECT_EQ(human_bytes(0), "0 B");
  EXPECT_EQ(human_bytes(1023), "1023 B");
  EXPECT_EQ(human_bytes(1536), "1.5 KiB");
  EXPECT_EQ(human_bytes((uint64_t{1} << 20) - 1), "1.0 MiB");
  EXPECT_EQ(human_bytes(~uint64_t{0}), "16.0 EiB");
  EXPECT_EQ(human_count(2.8e6), "2.80 M");
  EXPECT_EQ(human_count(999), "999");
  EXPECT_EQ(human_count(999999), "1.00 M");
  EXPECT_EQ(human_duration(0.0042), "4 ms");
  EXPECT_EQ(human_duration(4.24), "4.2 s");
  EXPECT_EQ(human_duration(59.97), "1:00");
  EXPECT_EQ(human_duration(3723), "1:02:03");
  EXPECT_EQ(human_duration(-1), "?");
  EXPECT_THAT(utc_timestamp(),
              testing::MatchesRegex("20[0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9]Z"));
}

TEST(Hash, KnownAnswers) {
  EXPECT_EQ(sha256_hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");  // FIPS 180-4 examples
  EXPECT_EQ(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  Sha256 parts;
  parts.update("a", 1);
  parts.update("", 0);
  parts.update("bc", 2);
  EXPECT_EQ(parts.hex(), sha256_hex("abc"));
  EXPECT_THROW(parts.hex(), Error);
  EXPECT_EQ(crc32c("123456789", 9), 0xE3069283u);  // RFC 3720, B.4
  EXPECT_EQ(crc32c(std::string(32, '\0').data(), 32), 0x8A9136AAu);
  EXPECT_EQ(crc32c(nullptr, 0), 0u);
  EXPECT_EQ(fnv1a64(""), 0xcbf29ce484222325ull);
  EXPECT_EQ(fnv1a64("foobar"), 0x85944171f73967e8ull);
}

TEST(Philox, KnownAnswers) {  // Random123, kat_vectors
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}),
            (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  double sum = 0;
  for (uint64_t i = 0; i < 10000; ++i) sum += philox_uniform(1, 2, i);
  EXPECT_NEAR(sum / 10000, 0.5, 0.01);
}

TEST_F(Files, AtomicWriteReplacesAndLeavesNothingBehind) {
  const fs::path file = folder_ / "a.txt";
  write_text_atomic(file, "one");
  write_text_atomic(file, "two");
  EXPECT_EQ(read_text(file), "two");
  EXPECT_EQ(sha256_file(file.string()), sha256_hex("two"));
  {
    FileWriter unfinished(file);
    unfinished.write("three", 5);
  }
  EXPECT_EQ(read_text(file), "two");
  EXPECT_EQ(names(), std::vector<std::string>{"a.txt"});
}

TEST_F(Files, ErrorsNamePathAndReason) {
  EXPECT_EQ(data_error([&] { read_text(folder_ / "none"); }),
            (folder_ / "none").string() + ": cannot be read: No such file or directory");
  EXPECT_THAT(data_error([&] { read_text(folder_); }), HasSubstr("Is a directory"));
  EXPECT_THAT(data_error([&] { write_text_atomic(folder_ / "no/such/x", ""); }),
              StartsWith((folder_ / "no/such/x").string() + ": cannot be written"));
  EXPECT_THAT(data_error([&] { sha256_file((folder_ / "none").string()); }), HasSubstr("none: cannot be read"));
  EXPECT_THAT(data_error([&] { MappedFile map(folder_); }), HasSubstr("is not a file"));
  write_text_atomic(folder_ / "empty", "");
  EXPECT_THAT(data_error([&] { MappedFile map(folder_ / "empty"); }), HasSubstr("the file is empty"));
  EXPECT_THAT(data_error([&] { make_directories(folder_ / "empty"); }), HasSubstr("cannot be made: Not a directory"));
  EXPECT_THAT(data_error([&] { make_directories(folder_ / "empty/below"); }),
              HasSubstr("cannot be made: Not a directory"));
  EXPECT_THAT(data_error([&] { make_directories("/proc/fewstep"); }),
              StartsWith("/proc/fewstep: the folder cannot be made"));
}

TEST_F(Files, NoPermission) {
  if (::getuid() == 0) {  // root may write anywhere: become somebody else
    fs::permissions(folder_, fs::perms::owner_all | fs::perms::group_read | fs::perms::group_exec |
                                 fs::perms::others_read | fs::perms::others_exec);
    const auto [status, text] = in_child([&] {
      if (::setuid(65534) != 0) return 1;
      const std::string message = data_error([&] { write_text_atomic(folder_ / "x", "y"); });
      return message.find("x: cannot be written: Permission denied (check the owner") == std::string::npos ? 2 : 0;
    });
    EXPECT_EQ(status, 0) << text;
  } else {
    fs::permissions(folder_, fs::perms::owner_read | fs::perms::owner_exec);
    EXPECT_THAT(data_error([&] { write_text_atomic(folder_ / "x", "y"); }), HasSubstr("Permission denied"));
    fs::permissions(folder_, fs::perms::owner_all);
  }
}

TEST_F(Files, FullDisk) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "no /dev/full";
  EXPECT_THAT(data_error([] {
                append_jsonl("/dev/full", Json{{"a", 1}});
              }),
              HasSubstr("/dev/full: cannot be written: No space left on device"));
}

TEST_F(Files, AFileSizeLimitIsAnErrorAndKeepsTheOldFile) {
  const fs::path file = folder_ / "big", log = folder_ / "log.jsonl";
  write_text_atomic(file, "old");
  append_jsonl(log, Json{{"step", 1}});
  const auto [status, text] = in_child([&] {
    signals::install();
    const rlimit limit{100, 100};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const std::string whole = data_error([&] { write_text_atomic(file, std::string(5000, 'x')); });
    const std::string line = data_error([&] { append_jsonl(log, Json{{"text", std::string(200, 'y')}}); });
    return whole.find("big: cannot be written: File too large") == std::string::npos ||
           line.find("log.jsonl: cannot be written") == std::string::npos;
  });
  EXPECT_EQ(status, 0) << text;
  EXPECT_EQ(read_text(file), "old");
  EXPECT_EQ(read_text(log), "{\"step\":1}\n");  // no part of a line
  EXPECT_EQ(names(), (std::vector<std::string>{"big", "log.jsonl"}));
}

TEST_F(Files, MapShowsTheBytes) {
  write_text_atomic(folder_ / "m", "hello");
  const MappedFile map(folder_ / "m");
  EXPECT_EQ(std::string_view(reinterpret_cast<const char*>(map.data()), map.size()), "hello");
}

TEST_F(Files, LockNamesItsHolder) {
  const fs::path file = folder_ / "lock";
  auto lock = std::make_unique<FileLock>(file);
  const std::string holder = fmt::format("in use by process {} ", ::getpid());
  EXPECT_THAT(data_error([&] { FileLock second(file); }), HasSubstr(holder));
  const auto [status, text] = in_child([&] {  // without the inherited descriptor this process would hold nothing
    return data_error([&] { FileLock second(file); }).find(holder) == std::string::npos;
  });
  EXPECT_EQ(status, 0) << text;
  lock.reset();
  EXPECT_EQ(data_error([&] { FileLock third(file); }), "(no error)");
}

TEST_F(Files, Json) {
  const fs::path file = folder_ / "a.json";
  write_json(file, Json{{"z", 1}, {"a", {1.5, "\xff"}}});  // order kept, bytes that are not UTF-8 replaced
  EXPECT_EQ(read_json(file).dump(), "{\"z\":1,\"a\":[1.5,\"\xEF\xBF\xBD\"]}");
  for (int i = 0; i < 3; ++i) append_jsonl(folder_ / "l", Json{{"i", i}, {"text", "a\nb"}});
  const auto lines = split(read_text(folder_ / "l"), '\n');
  ASSERT_EQ(lines.size(), 4u);
  EXPECT_EQ(Json::parse(lines[2])["i"], 2);
  write_text_atomic(file, "{\"a\": 1,, }");
  EXPECT_THAT(data_error([&] { read_json(file); }), HasSubstr("a.json: not valid JSON at byte 9"));
}

TEST(Log, LevelsRanksAndLines) {
  const auto [status, text] = in_child([] {
    log::debug("hidden");
    log::info("hello {}", 1);
    log::set_rank(2, 4);
    log::info("hidden");
    log::warn("careful");
    log::set_level(log::Level::error);
    log::warn("hidden");
    log::error("broken");
    return 0;
  });
  EXPECT_EQ(status, 0);
  EXPECT_THAT(text, testing::MatchesRegex(
                        "[0-9:]+ hello 1\n[0-9:]+ .rank 2. warning: careful\n[0-9:]+ .rank 2. error: broken\n"));
  EXPECT_EQ(log::parse_level("warning"), log::Level::warning);
  EXPECT_THROW(log::parse_level("loud"), ConfigError);
}

TEST(Progress, PlainLinesWithoutATerminal) {
  const auto [status, text] = in_child([] {
    Progress progress("train", 200, 50);
    for (int i = 50; i <= 200; ++i) progress.update(i, "loss 1.0");  // faster than the interval: nothing printed
    progress.finish("loss 0.5");
    progress.finish("twice");
    Progress("empty", 0).finish();
    return 0;
  });
  EXPECT_EQ(status, 0);
  EXPECT_THAT(text, testing::MatchesRegex(
                        "[0-9:]+ train  100%  200/200  [0-9.]+ m?s  loss 0.5\n[0-9:]+ empty  100%  0/0  .*\n"));
}

TEST(Signals, StopThenDieAtTheSecondInterrupt) {
  const auto [status, text] = in_child([] {
    signals::install();
    ::raise(SIGTERM);
    ::raise(SIGTERM);
    if (!signals::stop_requested()) return 1;
    signals::clear();
    ::raise(SIGINT);
    if (!signals::stop_requested()) return 2;
    ::raise(SIGINT);
    return 3;
  });
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 130);
}

TEST(Queue, HandsOverItemsThenTheError) {
  BoundedQueue<int> queue(2);
  std::thread producer([&] {
    for (int i = 0; i < 100; ++i) queue.push(i);
    queue.fail(std::make_exception_ptr(DataError("bad file")));
  });
  for (int i = 0; i < 100; ++i) EXPECT_EQ(queue.pop(), i);
  EXPECT_THROW(queue.pop(), DataError);
  producer.join();
  BoundedQueue<int> closed(1);
  closed.close();
  EXPECT_FALSE(closed.push(1));
  EXPECT_EQ(closed.pop(), std::nullopt);
}

TEST(Table, UnknownNamesAreAnsweredWithTheKnown) {
  struct Entry {
    std::string_view name;
    int value;
  };
  constexpr Entry kTable[] = {{"fid", 1}, {"kid", 2}};
  EXPECT_EQ(find_entry(std::span<const Entry>(kTable), "kid", "metric").value, 2);
  try {
    find_entry(std::span<const Entry>(kTable), "fidd", "metric");
    FAIL();
  } catch (const ConfigError& e) {
    EXPECT_STREQ(e.what(), "unknown metric: 'fidd' is not one of fid, kid (did you mean 'fid'?)");
    EXPECT_EQ(e.exit_code(), 2);
  }
}

TEST(ParallelFor, EveryItemOnceInAnyNumberOfThreads) {
  for (const int64_t threads : {0, 1, 3, 100}) {
    std::vector<int> seen(1000, 0);
    parallel_for(seen.size(), threads, [&](size_t i) { ++seen[i]; });
    EXPECT_EQ(seen, std::vector<int>(1000, 1)) << threads;
  }
  parallel_for(0, 4, [](size_t) { FAIL(); });
}

TEST(ParallelFor, AnErrorEndsTheLoopAndReachesTheCaller) {
  for (const int64_t threads : {1, 4}) {
    std::atomic<int> calls = 0;
    EXPECT_THROW(parallel_for(1000000, threads, [&](size_t i) { ++calls; if (i == 10) fail<DataError>("item {}", i); }), DataError);
    EXPECT_LT(calls, 1000000);
  }
}

TEST(Version, CommitIsKnown) { EXPECT_THAT(build_commit(), testing::MatchesRegex("[0-9a-f]+(-dirty)?|unknown")); }

}  // namespace
}  // namespace fewstep
