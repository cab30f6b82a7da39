#include "datasets/fashion_mnist.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <map>
#include <mutex>

#include "datasets/idx.h"
#include "src/base/error.h"
#include "src/base/hash.h"
#include "src/tensor/ops.h"

namespace fewstep {
namespace {

namespace fs = std::filesystem;

fs::path find_file(const fs::path& folder, std::string_view stem) {
  for (std::string_view suffix : {".gz", ""})
    if (fs::path path = folder / fmt::format("{}{}", stem, suffix); fs::exists(path)) return path;
  fail<DataError>(
      "{}/{}.gz not found: install Fashion-MNIST with `apt-get install dataset-fashion-mnist`, or set data.folder "
      "to the folder that holds its four IDX files",
      folder.string(), stem);
}

struct Files {
  IdxArray images, labels;  // [N, H, W], [N]
};

Files read_pair(const fs::path& folder, std::string_view prefix) {
  const fs::path image_path = find_file(folder, fmt::format("{}-images-idx3-ubyte", prefix));
  const fs::path label_path = find_file(folder, fmt::format("{}-labels-idx1-ubyte", prefix));
  Files files{read_idx(image_path, 3), read_idx(label_path, 1)};
  if (files.images.shape[0] != files.labels.shape[0])
    fail<DataError>("{} has {} images, but {} has {} labels: the files do not belong together", image_path.string(),
                    files.images.shape[0], label_path.string(), files.labels.shape[0]);
  const auto bad = std::find_if(files.labels.values.begin(), files.labels.values.end(),
                                [](uint8_t label) { return label >= kFashionClasses; });
  if (bad != files.labels.values.end())
    fail<DataError>("{}: label {} of image {} is not a class (0 to 9)", label_path.string(), *bad,
                    bad - files.labels.values.begin());
  return files;
}

std::vector<Measurement> measure_all(const IdxArray& images) {
  const int64_t height = images.shape[1], width = images.shape[2];
  const size_t pixels = static_cast<size_t>(height * width);
  std::vector<Measurement> measured(static_cast<size_t>(images.shape[0]));
  at::parallel_for(0, images.shape[0], 512, [&](int64_t begin, int64_t end) {  // part of every start-up
    for (size_t i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i)
      measured[i] = measure_garment({images.values.data() + i * pixels, pixels}, height, width);
  });
  return measured;
}

// A file pair with its measurements. The train and heldout splits, and the test split's thresholds, share one reading.
struct Measured {
  Files files;
  std::vector<Measurement> measured;  // by row of the file
};

std::shared_ptr<const Measured> load_measured(const fs::path& folder, std::string_view prefix) {
  static std::mutex mutex;
  static std::map<std::string, std::weak_ptr<const Measured>> loaded;  // kept only while some data set uses it
  std::lock_guard lock(mutex);
  auto& place = loaded[fs::absolute(folder / prefix).lexically_normal().string()];
  if (auto known = place.lock()) return known;
  auto fresh = std::make_shared<Measured>();
  fresh->files = read_pair(folder, prefix);
  fresh->measured = measure_all(fresh->files.images);
  place = fresh;
  return fresh;
}

class FashionMnistImpl final : public FashionMnist {
 public:
  FashionMnistImpl(const FashionMnistConfig& config, Split split) : config_(config), split_(split) {
    const auto train = load_measured(config.folder, "train");
    thresholds_ = find_thresholds(train->measured, train->files.labels.values);
    const int64_t total = train->files.images.shape[0];
    if (config.heldout > total)
      fail<ConfigError>("data.heldout is {}, but {} holds only {} training images", config.heldout, config.folder,
                        total);
    data_ = split == Split::test ? load_measured(config.folder, "t10k") : train;
    const Files& files = data_->files;
    int64_t begin = 0, end = files.images.shape[0];
    if (split == Split::test) {
      id_base_ = total;  // ids are unique over the splits
    } else {
      (split == Split::heldout ? begin : end) = total - config.heldout;
    }
    const int64_t largest = std::max(files.images.shape[1], files.images.shape[2]);
    if (config.image_size < largest)
      fail<ConfigError>("data.image_size is {}, below the {} pixels of the photographs: they are padded, never cut",
                        config.image_size, largest);
    for (int64_t i = begin; i < end; ++i) {
      if (split == Split::train && config.holdout_pairs && held_out(static_cast<size_t>(i))) {
        ++removed_;
      } else {
        places_.push_back(i);
      }
    }
    fingerprint_ = sha256_hex(fmt::format("fashion_mnist 1 {} {} {} {} split {} size {} heldout {} pairs {}",
                                          train->files.images.sha256, train->files.labels.sha256, files.images.sha256,
                                          files.labels.sha256, static_cast<int>(split), config.image_size,
                                          config.heldout, config.holdout_pairs));
  }

  int64_t size() const override { return static_cast<int64_t>(places_.size()); }
  const AttributeThresholds& thresholds() const override { return thresholds_; }
  Attributes attributes(int64_t index) const override {
    return name_attributes(data_->measured[place(index)], label(index), thresholds_);
  }
  int64_t label(int64_t index) const override { return data_->files.labels.values[place(index)]; }

  Sample get(int64_t index, uint64_t seed, int64_t epoch) const override {
    Sample sample;
    sample.id = id_base_ + static_cast<int64_t>(place(index));
    sample.image = padded(place(index));
    sample.label = label(index);
    sample.micro = whole_image(config_.image_size, config_.image_size);
    sample.attributes = attributes(index);
    const int64_t form = choose_caption(caption_template_count(), seed, epoch, sample.id);
    sample.caption = write_caption(form, sample.label, sample.attributes);
    return sample;
  }
  std::vector<std::string> captions(int64_t index) const override {
    std::vector<std::string> all;
    for (int64_t form = 0; form < caption_template_count(); ++form)
      all.push_back(write_caption(form, label(index), attributes(index)));
    return all;
  }
  std::vector<std::string> class_names() const override {
    return {fashion_class_names().begin(), fashion_class_names().end()};
  }
  std::string description() const override {
    std::string text = fmt::format("Fashion-MNIST {}: {} photographs, {} x {} grey",
                                   name_of(split_), size(), config_.image_size, config_.image_size);
    if (removed_ > 0) text += fmt::format(" ({} of the held-out class-attribute pairs removed)", removed_);
    return text;
  }
  std::string fingerprint() const override { return fingerprint_; }

 private:
  size_t place(int64_t index) const { return static_cast<size_t>(places_.at(static_cast<size_t>(index))); }

  bool held_out(size_t at) const {
    const int64_t label = data_->files.labels.values[at];
    for (const HeldOutPair& pair : held_out_pairs())  // most classes need no words
      if (pair.label == label) return is_held_out(label, name_attributes(data_->measured[at], label, thresholds_));
    return false;
  }

  Tensor padded(size_t at) const {  // uint8 [1, S, S], centred on black
    const int64_t height = data_->files.images.shape[1], width = data_->files.images.shape[2],
                  size = config_.image_size;
    Tensor image = at::empty({1, size, size}, at::kByte);
    uint8_t* out = image.mutable_data_ptr<uint8_t>();
    std::fill_n(out, size * size, uint8_t{0});
    const uint8_t* in = data_->files.images.values.data() + at * static_cast<size_t>(height * width);
    out += (size - height) / 2 * size + (size - width) / 2;
    for (int64_t y = 0; y < height; ++y) std::copy_n(in + y * width, width, out + y * size);
    return image;
  }

  FashionMnistConfig config_;
  Split split_;
  std::shared_ptr<const Measured> data_;
  AttributeThresholds thresholds_;
  std::vector<int64_t> places_;  // index -> row of the file
  int64_t id_base_ = 0, removed_ = 0;
  std::string fingerprint_;
};

}  // namespace

void FashionMnistConfig::describe(config::Visitor& v) {
  v.field("folder", folder, "folder with the four IDX files, plain or .gz (Debian: dataset-fashion-mnist)");
  v.field("image_size", image_size, "the 28 x 28 photographs are padded with black to this size",
          config::Range{28, 1024});
  v.field("heldout", heldout, "images cut from the end of the train file as the heldout split",
          config::Range{0, 60000});
  v.field("holdout_pairs", holdout_pairs, "remove the images of two class-attribute pairs from the train split");
}

std::unique_ptr<Dataset> FashionMnistConfig::build(Split split) const {
  return std::make_unique<FashionMnistImpl>(*this, split);
}

}  // namespace fewstep
