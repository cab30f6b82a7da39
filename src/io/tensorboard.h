// TensorBoard event files (TFRecord framing with masked CRC-32C around hand-encoded Event protobufs).
#pragma once
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string_view>

namespace fewstep::io {

class TensorBoardWriter {
 public:
  explicit TensorBoardWriter(const std::filesystem::path& folder);  // opens events.out.tfevents.<time>.<host>.<pid>.<n>
  void scalar(std::string_view tag, double value, int64_t step);
  void image(std::string_view tag, std::string_view png, int64_t width, int64_t height, int64_t step);
  void text(std::string_view tag, std::string_view text, int64_t step);
  void flush();  // DataError when the disk is full
  const std::filesystem::path& path() const { return path_; }

 private:
  void record(std::string_view event);
  std::filesystem::path path_;
  std::ofstream file_;
};

}  // namespace fewstep::io
