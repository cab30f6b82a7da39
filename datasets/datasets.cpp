// The table of data set kinds, and batches.
#include <fmt/ranges.h>

#include <array>

#include "datasets/coco.h"
#include "datasets/dataset.h"
#include "datasets/fashion_mnist.h"
#include "datasets/image_folder.h"
#include "datasets/packed.h"
#include "src/base/error.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"

namespace fewstep {
namespace {

template <class Config>
std::unique_ptr<DatasetConfig> make() {
  return std::make_unique<Config>();
}

constexpr std::array kKinds = {
    DatasetKind{"fashion_mnist", make<FashionMnistConfig>},
    DatasetKind{"image_folder", make<ImageFolderConfig>},
    DatasetKind{"coco", make<CocoConfig>},
    DatasetKind{"hdf5", make<PackedConfig>},
};

std::string shape_text(const Tensor& x) { return fmt::format("{}", fmt::join(x.sizes().vec(), " x ")); }

}  // namespace

std::span<const DatasetKind> dataset_kinds() { return kKinds; }

int64_t choose_caption(int64_t count, uint64_t seed, int64_t epoch, int64_t id) {
  FEW_CHECK(count > 0, "sample {} has no captions to choose from", id);
  // The high bits choose: multiplication instead of a remainder.
  const uint64_t draw = stream_key(seed, Stream::augment, epoch, id) >> 32;
  return static_cast<int64_t>((draw * static_cast<uint64_t>(count)) >> 32);
}

int64_t Batch::size() const { return ids.defined() ? ids.size(0) : 0; }

Batch Batch::slice(int64_t begin, int64_t end) const {
  FEW_CHECK(begin >= 0 && begin <= end && end <= size(), "slice [{}, {}) of a batch of {}", begin, end, size());
  return {ids.slice(0, begin, end),
          images.slice(0, begin, end),
          labels.slice(0, begin, end),
          {captions.begin() + begin, captions.begin() + end}};
}

Batch Batch::to(at::Device device) const { return {ids.to(device), images.to(device), labels.to(device), captions}; }

Batch collate(std::span<const Sample> samples) {
  FEW_CHECK(!samples.empty(), "collate of no samples");
  const int64_t n = static_cast<int64_t>(samples.size());
  const Tensor& first = samples.front().image;
  std::vector<int64_t> shape = first.sizes().vec();
  shape.insert(shape.begin(), n);
  Batch batch{at::empty({n}, at::kLong), at::empty(shape, at::kFloat), at::empty({n}, at::kLong), {}};
  batch.captions.reserve(samples.size());
  int64_t* ids = batch.ids.mutable_data_ptr<int64_t>();
  int64_t* labels = batch.labels.mutable_data_ptr<int64_t>();
  float* out = batch.images.mutable_data_ptr<float>();
  // Plain loops: loader threads call this, and an operator would start a team of OpenMP threads beside the trainer's.
  for (const Sample& sample : samples) {
    if (sample.image.sizes() != first.sizes())
      fail<DataError>("sample {} is {}, but sample {} of the same batch is {}: give the data set one image_size",
                      sample.id, shape_text(sample.image), samples.front().id, shape_text(first));
    FEW_CHECK(sample.image.scalar_type() == at::kByte && sample.image.is_contiguous(),
              "sample {}: not contiguous uint8", sample.id);
    const uint8_t* bytes = sample.image.const_data_ptr<uint8_t>();
    const int64_t count = sample.image.numel();
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(bytes[i]) / 127.5f - 1.0f;  // 0 -> -1, 255 -> 1
    out += count;
    *ids++ = sample.id;
    *labels++ = sample.label;
    batch.captions.push_back(sample.caption);
  }
  return batch;
}

}  // namespace fewstep
