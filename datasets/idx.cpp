#include "datasets/idx.h"

#include <fmt/ranges.h>
#include <zlib.h>

#include <algorithm>
#include <limits>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/hash.h"

namespace fewstep {
namespace {

constexpr uint64_t kMaxBytes = uint64_t{1} << 33;
constexpr const char* kTypes[] = {"unsigned byte", "signed byte", nullptr, "short", "int", "float", "double"};

// Bytes of a file, plain or inflated, drawn in order.
class Source {
 public:
  Source(const std::filesystem::path& path, const std::string& bytes) : name_(path.string()), bytes_(bytes) {
    gzip_ = bytes.size() >= 2 && bytes[0] == '\x1f' && bytes[1] == '\x8b';
    if (!gzip_) return;
    if (inflateInit2(&stream_, 15 + 16) != Z_OK) fail("zlib could not be initialised");  // 16: gzip header and CRC
    stream_.next_in = const_cast<Bytef*>(reinterpret_cast<const Bytef*>(bytes.data()));
    stream_.avail_in = static_cast<uInt>(bytes.size());
  }
  ~Source() {
    if (gzip_) inflateEnd(&stream_);
  }
  Source(const Source&) = delete;
  Source& operator=(const Source&) = delete;

  // Up to `count` bytes; fewer only at the end.
  size_t read(uint8_t* out, size_t count) {
    if (!gzip_) {
      const size_t n = std::min(count, bytes_.size() - position_);
      std::copy_n(bytes_.data() + position_, n, out);
      position_ += n;
      return n;
    }
    size_t done = 0;
    while (done < count && !ended_) {
      const size_t chunk = std::min(count - done, size_t{1} << 30);
      stream_.next_out = out + done;
      stream_.avail_out = static_cast<uInt>(chunk);
      check(inflate(&stream_, Z_NO_FLUSH));
      done += chunk - stream_.avail_out;
    }
    return done;
  }
  // Nothing may follow: neither values nor, after a gzip member, other bytes. Reading on verifies the CRC.
  void expect_end() {
    uint8_t extra = 0;
    if (read(&extra, 1) != 0)
      fail<DataError>("{}: bytes follow the last value: the sizes in its header are wrong", name_);
    if (gzip_ && stream_.avail_in != 0) fail<DataError>("{}: {} bytes follow the gzip stream", name_, stream_.avail_in);
  }

 private:
  void check(int status) {
    if (status == Z_STREAM_END) {
      ended_ = true;
    } else if (status == Z_BUF_ERROR || (status == Z_OK && stream_.avail_in == 0 && stream_.avail_out != 0)) {
      fail<DataError>("{}: the gzip stream is truncated", name_);
    } else if (status != Z_OK) {
      fail<DataError>("{}: the gzip stream is corrupt: {}", name_, stream_.msg ? stream_.msg : zError(status));
    }
  }
  std::string name_;
  const std::string& bytes_;
  size_t position_ = 0;
  z_stream stream_{};
  bool gzip_ = false, ended_ = false;
};

}  // namespace

IdxArray read_idx(const std::filesystem::path& path, size_t rank) {
  const std::string bytes = read_text(path), name = path.string();
  if (bytes.size() > std::numeric_limits<uInt>::max()) fail<DataError>("{}: {} bytes are too many", name, bytes.size());
  Source source(path, bytes);
  uint8_t word[4] = {};
  if (source.read(word, 4) != 4) fail<DataError>("{}: too short for an IDX header", name);
  if (word[0] != 0 || word[1] != 0)
    fail<DataError>("{}: not an IDX file: begins with {:02x} {:02x}, expected 00 00", name, word[0], word[1]);
  if (word[2] != 0x08) {
    const size_t type = static_cast<size_t>(word[2]) - 8;
    const char* known = type < std::size(kTypes) ? kTypes[type] : nullptr;
    fail<DataError>("{}: IDX values of type 0x{:02x} ({}), expected 0x08 (unsigned byte)", name, word[2],
                    known ? known : "unknown");
  }
  if (word[3] != rank) fail<DataError>("{}: IDX array of {} dimensions, expected {}", name, word[3], rank);

  IdxArray array;
  uint64_t count = 1;
  for (size_t d = 0; d < rank; ++d) {
    if (source.read(word, 4) != 4) fail<DataError>("{}: truncated in the IDX header", name);
    const uint64_t n = (uint64_t{word[0]} << 24) | (uint64_t{word[1]} << 16) | (uint64_t{word[2]} << 8) | word[3];
    array.shape.push_back(static_cast<int64_t>(n));
    count = n == 0 ? 0 : count > kMaxBytes / n ? kMaxBytes + 1 : count * n;
    if (count > kMaxBytes)
      fail<DataError>("{}: IDX sizes {} are over {} bytes", name, fmt::join(array.shape, " x "), kMaxBytes);
  }
  // Grown as bytes arrive: a header cannot make a small file take gigabytes.
  constexpr uint64_t kStep = uint64_t{64} << 20;
  for (uint64_t have = 0; have < count;) {
    const uint64_t want = std::min(kStep, count - have);
    array.values.resize(have + want);
    const size_t got = source.read(array.values.data() + have, want);
    have += got;
    if (got != want)
      fail<DataError>("{}: truncated: {} of {} values ({})", name, have, count, fmt::join(array.shape, " x "));
  }
  source.expect_end();
  array.sha256 = sha256_hex(bytes);
  return array;
}

}  // namespace fewstep
