// Packed image data sets: one HDF5 file with pictures, captions and labels.
//   images          uint8 [N, C, H, W]             when all have one size, or
//   image_bytes     uint8 [bytes], image_offsets int64 [N + 1]   files as they were (PNG, JPEG, WebP), end to end
//   caption_bytes   uint8 [bytes], caption_offsets int64 [captions + 1]   UTF-8, end to end
//   captions_of     int64 [N + 1]                  picture i has captions captions_of[i] ... captions_of[i + 1] - 1
//   labels          int64 [N]                      -1: none
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "src/io/hdf5.h"
#include "src/io/image.h"

namespace fewstep::io {

class PackedWriter {
 public:
  // `shape` {C, H, W}: pictures of that size as bytes; empty: encoded files of any size.
  explicit PackedWriter(const std::filesystem::path& path, std::vector<int64_t> shape = {});
  void add(const Tensor& image, const std::vector<std::string>& captions, int64_t label = -1);  // uint8 [C, H, W]
  void add_encoded(std::string_view bytes, const std::vector<std::string>& captions, int64_t label = -1);
  void set_attribute(const std::string& key, const H5Attribute& value) { file_.set_attribute(key, value); }
  H5File& file() { return file_; }  // for further data sets beside these
  int64_t size() const { return count_; }
  void commit();  // nothing remains without it

 private:
  void add_text(const std::vector<std::string>& captions, int64_t label);
  void flush();

  H5File file_;
  std::vector<int64_t> shape_;
  int64_t count_ = 0, image_end_ = 0, caption_end_ = 0, caption_count_ = 0;
  // Rows not written yet: HDF5 calls cost microseconds, so they are made in blocks.
  std::string image_bytes_, caption_bytes_;
  std::vector<int64_t> image_offsets_, caption_offsets_, captions_of_, labels_;
};

// Thread-safe. Offsets and labels are in memory, pictures and captions are read when asked for.
class PackedImages {
 public:
  explicit PackedImages(const std::filesystem::path& path);  // DataError: not such a file, or inconsistent
  int64_t size() const { return size_; }
  bool encoded() const { return shape_.empty(); }
  const std::vector<int64_t>& shape() const { return shape_; }             // {C, H, W}; empty when encoded
  Tensor image(int64_t index, Channels channels = Channels::as_is) const;  // uint8 [C, H, W], decoded
  std::string bytes(int64_t index) const;                                  // encoded only: the file as it was packed
  std::vector<std::string> captions(int64_t index) const;
  int64_t label(int64_t index) const;
  const H5File& file() const { return file_; }

 private:
  void check_index(int64_t index) const;
  std::string text(const std::string& name, int64_t begin, int64_t end) const;
  std::vector<int64_t> offsets(const std::string& name, int64_t count, int64_t total) const;

  H5File file_;
  int64_t size_ = 0;
  std::vector<int64_t> shape_, image_offsets_, caption_offsets_, captions_of_, labels_;
};

}  // namespace fewstep::io
