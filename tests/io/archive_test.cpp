// Archives and numpy's files.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/io/archive.h"
#include "src/io/npz.h"
#include "src/tensor/ops.h"
#include "tests/support/message_of.h"

namespace fewstep::io {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
namespace fs = std::filesystem;

class Archive : public testing::Test {
 protected:
  const fs::path folder = fs::temp_directory_path() / fmt::format("fewstep-archive-{}", ::getpid());
  void SetUp() override { fs::remove_all(folder), fs::create_directories(folder); }
  void TearDown() override { fs::remove_all(folder); }
};

TEST_F(Archive, ZipComesBackAsWritten) {
  const std::string big(300000, 'x');
  write_zip(folder / "a.zip", {{"b/two.txt", "2"}, {"one.bin", big}, {"empty", ""}});
  std::vector<std::pair<std::string, std::string>> read;
  read_archive(folder / "a.zip", [&](const std::string& name, std::string bytes) {
    read.emplace_back(name, std::move(bytes));
    return true;
  });
  ASSERT_EQ(read.size(), 3u);
  EXPECT_EQ(read[0], std::make_pair(std::string("b/two.txt"), std::string("2")));
  EXPECT_EQ(read[1].second, big);
  EXPECT_THAT(archive_names(folder / "a.zip"), ElementsAre("b/two.txt", "one.bin", "empty"));
  write_zip(folder / "b.zip", {{"b/two.txt", "2"}, {"one.bin", big}, {"empty", ""}});
  EXPECT_EQ(read_text(folder / "a.zip"), read_text(folder / "b.zip"));
}

TEST_F(Archive, TarsWithAndWithoutCompression) {
  std::ofstream(folder / "x.txt") << "hello";
  ASSERT_EQ(
      std::system(fmt::format("cd {0} && mkdir d && cp x.txt d/y.txt && tar cf a.tar x.txt d && tar czf a.tgz x.txt d",
                              folder.string())
                      .c_str()),
      0);
  for (const char* name : {"a.tar", "a.tgz"}) {
    EXPECT_TRUE(is_archive_name(folder / name));
    EXPECT_THAT(archive_names(folder / name), ElementsAre("x.txt", "d/y.txt")) << name;  // folders are no files
    int stopped_after = 0;
    read_archive(folder / name, [&](const std::string&, std::string bytes) {
      EXPECT_EQ(bytes, "hello");
      ++stopped_after;
      return false;
    });
    EXPECT_EQ(stopped_after, 1);
  }
  EXPECT_FALSE(is_archive_name("a.safetensors"));
}

TEST_F(Archive, BrokenFilesAreNamed) {
  std::ofstream(folder / "no.zip") << "this is no archive";
  EXPECT_THAT(message_of([&] { archive_names(folder / "no.zip"); }), HasSubstr("no.zip"));
  write_zip(folder / "a.zip", {{"x", std::string(100000, 'y')}});
  fs::resize_file(folder / "a.zip", 5000);
  EXPECT_THAT(message_of([&] { read_archive(folder / "a.zip", [](const std::string&, std::string) { return true; }); }),
              HasSubstr("a.zip"));
  EXPECT_THAT(message_of([&] { archive_names(folder / "absent.tar"); }), HasSubstr("absent.tar"));
}

TEST_F(Archive, NumpysArraysOfEveryKind) {
  for (const char* name : {"stored.npz", "compressed.npz"}) {
    std::vector<std::string> skipped;
    const TensorMap a = read_npz(fs::path(FEWSTEP_SOURCE_DIR "/tests/golden/io") / name, &skipped);
    EXPECT_EQ(a.size(), 7u);
    EXPECT_THAT(skipped, ElementsAre("text"));
    EXPECT_TRUE(a.at("mu").equal(at::arange(5, at::kDouble) / 8));
    EXPECT_TRUE(a.at("sigma").equal(at::arange(6, at::kDouble).view({2, 3})));
    EXPECT_TRUE(a.at("fortran").equal(at::arange(6, at::kFloat).view({2, 3})));
    EXPECT_EQ(a.at("count").item<int64_t>(), 42);
    EXPECT_EQ(a.at("count").dim(), 0);
    EXPECT_TRUE(a.at("flags")[0].item<bool>() && !a.at("flags")[1].item<bool>());
    EXPECT_EQ(a.at("bytes")[2].item<int64_t>(), 2);
    EXPECT_EQ(a.at("none").sizes(), (std::vector<int64_t>{0, 4}));
  }
}

TEST_F(Archive, NpzWrittenIsReadBackBitForBit) {
  const TensorMap arrays{{"mu", at::arange(7, at::kDouble).sin()},
                         {"sigma", at::arange(12, at::kDouble).cos().view({3, 4}).t()},
                         {"n", at::scalar_tensor(5, at::kLong)}};
  write_npz(folder / "s.npz", arrays);
  const TensorMap back = read_npz(folder / "s.npz");
  ASSERT_EQ(back.size(), 3u);
  for (const auto& [name, t] : arrays) EXPECT_TRUE(back.at(name).equal(t)) << name;
  write_zip(folder / "torn.npz", {{"mu.npy", "\x93NUMPY but no more"}});
  EXPECT_THAT(message_of([&] { read_npz(folder / "torn.npz"); }),
              testing::AllOf(HasSubstr("torn.npz"), HasSubstr("'mu'")));
}

// A header may claim any shape: what is not in the file is neither allocated nor read.
TEST_F(Archive, AShapeLargerThanTheDataIsADataError) {
  const std::string header = "{'descr': '<f8', 'fortran_order': False, 'shape': (999999999999, 999999999999), }\n";
  std::string npy("\x93NUMPY\x01\x00", 8);
  npy += static_cast<char>(header.size()), npy += '\0';
  write_zip(folder / "huge.npz", {{"mu.npy", npy + header + "12345678"}});
  EXPECT_THAT(message_of([&] { read_npz(folder / "huge.npz"); }),
              testing::AllOf(HasSubstr("huge.npz"), HasSubstr("8 bytes of data")));
}

}  // namespace
}  // namespace fewstep::io
