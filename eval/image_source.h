// Where images to be measured lie: a folder, a tar or zip archive, an HDF5 file of pictures; read by many threads.
#pragma once
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "src/tensor/tensor.h"

namespace fewstep::eval {

class ImageSource {
 public:
  virtual ~ImageSource() = default;
  virtual size_t size() const = 0;
  virtual std::string name(size_t place) const = 0;  // relative, with '/'; places are in the order of the names
  // uint8 [C, H, W]. Thread-safe; any order works, rising places are fast. DataError naming the file and the reason.
  virtual Tensor read(size_t place) const = 0;
  // SHA-256 over the sorted lines "name, bytes, SHA-256 of the contents": equal for the same files in a folder and in
  // an archive. Reads everything once.
  virtual std::string content_hash() const = 0;
  virtual std::string path() const = 0;  // as it was given, for messages
};

// Folder: the files metadata.jsonl lists, or else every .png .jpg .jpeg .webp below it, hidden ones left out. Archive:
// the same by name. HDF5: src/io/packed.h. DataError: no such path, no image in it, another kind of file.
std::unique_ptr<ImageSource> open_images(const std::filesystem::path& path);
bool holds_images(const std::filesystem::path& path);  // a folder, an archive, or an HDF5 file with pictures

// Files by name below `folder`, in the order given. DataError for one that is not there.
std::unique_ptr<ImageSource> image_files_of(const std::filesystem::path& folder, std::vector<std::string> names);
// Every `stride`-th image, from `first`: the share of one process.
std::unique_ptr<ImageSource> every(std::shared_ptr<const ImageSource> source, size_t first, size_t stride);
// Central square, then Lanczos on bytes to side x side (crop_and_resize_lanczos), of every image.
std::unique_ptr<ImageSource> squares(std::shared_ptr<const ImageSource> source, int64_t side);
// The central side x side pixels, nothing resized (crop_centre). DataError for an image with a shorter side.
std::unique_ptr<ImageSource> central_crops(std::shared_ptr<const ImageSource> source, int64_t side);

// The files metadata.jsonl lists, or else all image files below `folder`, sorted by path, hidden ones left out.
std::vector<std::filesystem::path> image_files(const std::filesystem::path& folder);

}  // namespace fewstep::eval
