#include "eval/image_source.h"

#include <algorithm>
#include <fstream>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <numeric>

#include "datasets/image_list.h"
#include "eval/preprocessing.h"
#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/hash.h"
#include "src/base/json.h"
#include "src/base/text.h"
#include "src/io/archive.h"
#include "src/io/image.h"
#include "src/io/packed.h"
#include "src/tensor/ops.h"

namespace fewstep::eval {
namespace fs = std::filesystem;
namespace {

constexpr const char* kKnown =
    "a folder of images, an archive (.tar, .tar.gz, .tgz, .tar.xz, .tar.zst, .zip), or an "
    "HDF5 file of pictures (`fewstep data pack`)";

std::string content_line(const std::string& name, size_t bytes, const std::string& sha256) {
  return fmt::format("{} {} {}\n", name, bytes, sha256);
}
std::string hash_of_lines(std::vector<std::string> lines) {
  std::sort(lines.begin(), lines.end());
  Sha256 hash;
  for (const std::string& line : lines) hash.update(line.data(), line.size());
  return hash.hex();
}

class Files : public ImageSource {
 public:
  Files(fs::path folder, std::vector<std::string> names) : folder_(std::move(folder)), names_(std::move(names)) {}
  size_t size() const override { return names_.size(); }
  std::string name(size_t place) const override { return names_.at(place); }
  Tensor read(size_t place) const override { return io::read_image(folder_ / name(place), io::Channels::as_is); }
  std::string content_hash() const override {
    std::vector<std::string> lines;
    for (const std::string& name : names_) {
      const fs::path file = folder_ / name;
      if (!fs::exists(file)) fail<DataError>("{}: no such file", file.string());
      lines.push_back(content_line(name, fs::file_size(file), sha256_file(file.string())));
    }
    return hash_of_lines(std::move(lines));
  }
  std::string path() const override { return folder_.string(); }

 private:
  fs::path folder_;
  std::vector<std::string> names_;
};

bool hidden(const std::string& name) {  // also what macOS adds to archives
  for (const fs::path& part : fs::path(name))
    if (const std::string p = part.string(); (p.starts_with('.') && p != ".") || p == "__MACOSX") return true;
  return false;
}

// An archive is read from front to back; what was read on the way to a wanted entry waits in memory. Readers that take
// rising places never make it keep more than the archive's own order differs from that of the names.
class Archive : public ImageSource {
 public:
  explicit Archive(fs::path path) : path_(std::move(path)) {
    const std::vector<std::string> all = io::archive_names(path_);
    for (size_t entry = 0; entry < all.size(); ++entry)
      if (is_image_name(all[entry]) && !hidden(all[entry])) entries_.push_back({clean(all[entry]), entry});
    std::sort(entries_.begin(), entries_.end());
    for (size_t i = 1; i < entries_.size(); ++i)
      if (entries_[i].first == entries_[i - 1].first)
        fail<DataError>("{}: '{}' is there twice", path_.string(), entries_[i].first);
    for (size_t place = 0; place < entries_.size(); ++place) place_of_[entries_[place].second] = place;
  }
  size_t size() const override { return entries_.size(); }
  std::string name(size_t place) const override { return entries_.at(place).first; }
  Tensor read(size_t place) const override {
    const std::string bytes = take(place);
    return io::decode_image(bytes, fmt::format("{}: {}", path_.string(), name(place)), io::Channels::as_is);
  }
  std::string content_hash() const override {
    std::vector<std::string> lines;
    io::read_archive(path_, [&](const std::string& entry, const std::string& bytes) {
      if (is_image_name(entry) && !hidden(entry))
        lines.push_back(content_line(clean(entry), bytes.size(), sha256_hex(bytes)));
      return true;
    });
    return hash_of_lines(std::move(lines));
  }
  std::string path() const override { return path_.string(); }

 private:
  static std::string clean(const std::string& name) { return fs::path(name).lexically_normal().generic_string(); }

  std::string take(size_t place) const {
    const std::lock_guard lock(mutex_);
    const size_t wanted = entries_.at(place).second;
    if (const auto it = waiting_.find(wanted); it != waiting_.end()) {
      std::string bytes = std::move(it->second);
      waiting_.erase(it);
      return bytes;
    }
    if (!reader_ || next_ > wanted) waiting_.clear(), reader_ = std::make_unique<io::ArchiveReader>(path_), next_ = 0;
    std::string name, bytes;
    while (reader_->next(name)) {
      const size_t entry = next_++;
      if (entry == wanted) return reader_->contents();
      if (place_of_.contains(entry)) waiting_.emplace(entry, reader_->contents());
    }
    fail<DataError>("{}: '{}' is gone: did the archive change?", path_.string(), this->name(place));
  }

  fs::path path_;
  std::vector<std::pair<std::string, size_t>> entries_;  // name, place in the archive
  std::map<size_t, size_t> place_of_;
  mutable std::mutex mutex_;
  mutable std::unique_ptr<io::ArchiveReader> reader_;
  mutable size_t next_ = 0;
  mutable std::map<size_t, std::string> waiting_;
};

class Packed : public ImageSource {
 public:
  explicit Packed(const fs::path& path) : images_(path) {}
  size_t size() const override { return static_cast<size_t>(images_.size()); }
  std::string name(size_t place) const override { return fmt::format("{:08}", place); }
  Tensor read(size_t place) const override { return images_.image(static_cast<int64_t>(place)); }
  std::string content_hash() const override { return sha256_file(images_.file().path().string()); }
  std::string path() const override { return images_.file().path().string(); }

 private:
  io::PackedImages images_;
};

// Another source's images, some of them or changed.
class Derived : public ImageSource {
 public:
  explicit Derived(std::shared_ptr<const ImageSource> source) : source_(std::move(source)) {}
  size_t size() const override { return source_->size(); }
  std::string name(size_t place) const override { return source_->name(place); }
  Tensor read(size_t place) const override { return source_->read(place); }
  std::string path() const override { return source_->path(); }

 protected:
  std::shared_ptr<const ImageSource> source_;
};

class Every : public Derived {
 public:
  Every(std::shared_ptr<const ImageSource> source, size_t first, size_t stride)
      : Derived(std::move(source)), first_(first), stride_(stride) {}
  size_t size() const override {
    const size_t n = source_->size();
    return first_ < n ? (n - first_ - 1) / stride_ + 1 : 0;
  }
  std::string name(size_t place) const override { return source_->name(first_ + place * stride_); }
  Tensor read(size_t place) const override { return source_->read(first_ + place * stride_); }
  std::string content_hash() const override {
    return sha256_hex(fmt::format("every {} from {} of {}", stride_, first_, source_->content_hash()));
  }

 private:
  size_t first_, stride_;
};

class Squares : public Derived {
 public:
  Squares(std::shared_ptr<const ImageSource> source, int64_t side) : Derived(std::move(source)), side_(side) {}
  Tensor read(size_t place) const override { return crop_and_resize_lanczos(source_->read(place), side_); }
  std::string content_hash() const override {
    return sha256_hex(fmt::format("square {} of {}", side_, source_->content_hash()));
  }

 private:
  int64_t side_;
};

class CentralCrops : public Derived {
 public:
  CentralCrops(std::shared_ptr<const ImageSource> source, int64_t side) : Derived(std::move(source)), side_(side) {}
  Tensor read(size_t place) const override {
    const Tensor image = source_->read(place);
    if (std::min(image.size(1), image.size(2)) < side_)
      fail<DataError>("{}: {}: {} x {} pixels, no crop of {} fits into it; resizing would mix two populations", path(),
                      name(place), image.size(2), image.size(1), side_);
    return crop_centre(image, side_);
  }
  std::string content_hash() const override {
    return sha256_hex(fmt::format("crop {} of {}", side_, source_->content_hash()));
  }

 private:
  int64_t side_;
};

}  // namespace

std::vector<fs::path> image_files(const fs::path& folder) {
  std::vector<fs::path> files;
  if (std::ifstream listed(folder / "metadata.jsonl"); listed) {
    // The list says which files are the set: `fewstep sample` leaves an overview (grid.png) beside them.
    int64_t number = 0;
    for (std::string line; std::getline(listed, line);) {
      ++number;
      if (trim(line).empty()) continue;
      const Json entry = Json::parse(line, nullptr, false);
      if (!entry.is_object() || !entry.contains("file_name") || !entry["file_name"].is_string())
        fail<DataError>("{}: line {} is no object with file_name", (folder / "metadata.jsonl").string(), number);
      files.push_back(folder / entry["file_name"].get<std::string>());
    }
    return files;
  }
  for (auto it = fs::recursive_directory_iterator(folder, fs::directory_options::follow_directory_symlink);
       it != fs::recursive_directory_iterator(); ++it) {
    if (it->path().filename().string().starts_with('.')) {
      if (it->is_directory()) it.disable_recursion_pending();
      continue;
    }
    if (it->is_regular_file() && is_image_name(it->path())) files.push_back(it->path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

std::unique_ptr<ImageSource> image_files_of(const fs::path& folder, std::vector<std::string> names) {
  for (const std::string& name : names)
    if (!fs::exists(folder / name)) fail<DataError>("{}: no such image", (folder / name).string());
  return std::make_unique<Files>(folder, std::move(names));
}

bool holds_images(const fs::path& path) {
  if (fs::is_directory(path)) return true;
  if (!fs::exists(path)) return false;
  if (io::is_archive_name(path)) return true;
  if (path.extension() != ".h5" && path.extension() != ".hdf5") return false;
  const io::H5File file = io::H5File::open(path);
  return file.contains("images") || file.contains("image_bytes");
}

std::unique_ptr<ImageSource> open_images(const fs::path& path) {
  if (!fs::exists(path)) fail<DataError>("{}: no such folder or file", path.string());
  std::unique_ptr<ImageSource> source;
  if (fs::is_directory(path)) {
    std::vector<std::string> names;
    for (const fs::path& file : image_files(path)) names.push_back(file.lexically_relative(path).generic_string());
    source = std::make_unique<Files>(path, std::move(names));
  } else if (io::is_archive_name(path)) {
    source = std::make_unique<Archive>(path);
  } else if (holds_images(path)) {
    source = std::make_unique<Packed>(path);
  } else {
    fail<DataError>("{}: images are read from {}", path.string(), kKnown);
  }
  if (source->size() == 0) fail<DataError>("{}: no .png, .jpg, .jpeg or .webp files in it", path.string());
  return source;
}

std::unique_ptr<ImageSource> every(std::shared_ptr<const ImageSource> source, size_t first, size_t stride) {
  return std::make_unique<Every>(std::move(source), first, stride);
}
std::unique_ptr<ImageSource> central_crops(std::shared_ptr<const ImageSource> source, int64_t side) {
  return std::make_unique<CentralCrops>(std::move(source), side);
}
std::unique_ptr<ImageSource> squares(std::shared_ptr<const ImageSource> source, int64_t side) {
  return std::make_unique<Squares>(std::move(source), side);
}

}  // namespace fewstep::eval
