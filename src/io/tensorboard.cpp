#include "src/io/tensorboard.h"

#include <unistd.h>

#include <bit>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/hash.h"

namespace fewstep::io {
namespace {

// Protocol buffer wire format: each field is a varint key (number << 3 | type), then its value.
class Message {
 public:
  Message& integer(int field, uint64_t value) {
    key(field, 0);
    varint(value);
    return *this;
  }
  Message& number(int field, double value) {
    key(field, 1);
    return raw(value);
  }
  Message& number32(int field, float value) {
    key(field, 5);
    return raw(value);
  }
  Message& bytes(int field, std::string_view value) {
    key(field, 2);
    varint(value.size());
    data_.append(value);
    return *this;
  }
  const std::string& data() const { return data_; }

 private:
  void key(int field, int type) { varint(static_cast<uint64_t>(field) << 3 | static_cast<uint64_t>(type)); }
  void varint(uint64_t value) {
    for (; value >= 128; value >>= 7) data_.push_back(static_cast<char>(value | 128));
    data_.push_back(static_cast<char>(value));
  }
  template <class T>
  Message& raw(T value) {  // little-endian
    char bytes[sizeof(T)];
    std::memcpy(bytes, &value, sizeof(T));
    data_.append(bytes, sizeof(T));
    return *this;
  }
  std::string data_;
};

double now() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

// Event { wall_time = 1, step = 2, summary = 5 { value = 1 } } of tensorflow/core/util/event.proto
std::string event(const Message& value, int64_t step) {
  const Message summary = Message().bytes(1, value.data());
  return Message().number(1, now()).integer(2, static_cast<uint64_t>(step)).bytes(5, summary.data()).data();
}

// TFRecord's rotation keeps a checksum of a string that holds checksums from degenerating.
uint32_t masked_crc(const void* data, size_t bytes) { return std::rotr(crc32c(data, bytes), 15) + 0xa282ead8u; }

}  // namespace

TensorBoardWriter::TensorBoardWriter(const std::filesystem::path& folder) {
  make_directories(folder);
  char host[256] = "localhost";
  ::gethostname(host, sizeof host - 1);
  // Two writers of one process in one second (a resumed run in a test) must not share a file.
  for (int attempt = 0;; ++attempt) {
    path_ = folder /
            fmt::format("events.out.tfevents.{:010}.{}.{}.{}", static_cast<int64_t>(now()), host, ::getpid(), attempt);
    if (!std::filesystem::exists(path_)) break;
  }
  file_.open(path_, std::ios::binary);
  if (!file_) fail<DataError>("{}: cannot be written: {}", path_.string(), std::strerror(errno));
  record(Message().number(1, now()).bytes(3, "brain.Event:2").data());
  flush();
}

void TensorBoardWriter::scalar(std::string_view tag, double value, int64_t step) {
  record(event(Message().bytes(1, tag).number32(2, static_cast<float>(value)), step));
}

void TensorBoardWriter::image(std::string_view tag, std::string_view png, int64_t width, int64_t height, int64_t step) {
  Message picture;  // Summary.Image: height, width, colour space (3: RGB), encoded bytes
  picture.integer(1, static_cast<uint64_t>(height))
      .integer(2, static_cast<uint64_t>(width))
      .integer(3, 3)
      .bytes(4, png);
  record(event(Message().bytes(1, tag).bytes(4, picture.data()), step));
}

void TensorBoardWriter::text(std::string_view tag, std::string_view text, int64_t step) {
  // The text plug-in reads a string tensor (DT_STRING = 7) of shape [1].
  const Message dimension = Message().integer(1, 1);
  const Message shape = Message().bytes(2, dimension.data());
  const Message tensor = Message().integer(1, 7).bytes(2, shape.data()).bytes(8, text);
  const Message plugin = Message().bytes(1, "text");
  const Message metadata = Message().bytes(1, plugin.data());
  record(event(Message().bytes(1, tag).bytes(8, tensor.data()).bytes(9, metadata.data()), step));
}

// TFRecord: length, masked checksum of the length, data, masked checksum of the data.
void TensorBoardWriter::record(std::string_view event) {
  const uint64_t length = event.size();
  const uint32_t length_crc = masked_crc(&length, sizeof length), data_crc = masked_crc(event.data(), event.size());
  std::string framed(reinterpret_cast<const char*>(&length), sizeof length);
  framed.append(reinterpret_cast<const char*>(&length_crc), sizeof length_crc).append(event);
  framed.append(reinterpret_cast<const char*>(&data_crc), sizeof data_crc);
  file_.write(framed.data(), static_cast<std::streamsize>(framed.size()));
  if (!file_) fail<DataError>("{}: cannot be written (disk full?)", path_.string());
}

void TensorBoardWriter::flush() {
  file_.flush();
  if (!file_) fail<DataError>("{}: cannot be written (disk full?)", path_.string());
}

}  // namespace fewstep::io
