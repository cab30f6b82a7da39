// A folder for one test, and the message of the error that a call ends with.
#pragma once
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "src/base/error.h"
#include "tests/support/message_of.h"

namespace fewstep {

struct TemporaryFolder : testing::Test {
  TemporaryFolder() {
    folder = std::filesystem::temp_directory_path() /
             fmt::format("datasets_{}_{}", getpid(), testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::create_directories(folder);
  }
  ~TemporaryFolder() override { std::filesystem::remove_all(folder); }
  std::filesystem::path write(const std::string& name, const std::string& bytes) const {
    const auto path = folder / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << bytes;
    return path;
  }
  std::filesystem::path folder;
};

}  // namespace fewstep
