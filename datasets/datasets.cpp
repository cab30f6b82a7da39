// The table of data set kinds, and batches.
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "datasets/canvas_study.h"
#include "datasets/coco.h"
#include "datasets/dataset.h"
#include "datasets/fashion_mnist.h"
#include "datasets/image_folder.h"
#include "datasets/latent_cache.h"
#include "datasets/packed.h"
#include "datasets/size_study.h"
#include "datasets/tuxpaint_stamps.h"
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
    DatasetKind{"fashion_mnist_sizes", make<SizeStudyConfig>},
    DatasetKind{"fashion_mnist_canvas", make<CanvasStudyConfig>},
    DatasetKind{"tuxpaint_stamps", make<TuxpaintStampsConfig>},
    DatasetKind{"latent_cache", make<LatentCacheConfig>},
};

std::string shape_text(const Tensor& x) { return fmt::format("{}", fmt::join(x.sizes().vec(), " x ")); }

}  // namespace

std::span<const DatasetKind> dataset_kinds() { return kKinds; }

std::span<const config::Choice> split_choices() {
  static constexpr config::Choice kSplits[] = {{"train", static_cast<int>(Split::train)},
                                               {"heldout", static_cast<int>(Split::heldout)},
                                               {"test", static_cast<int>(Split::test)}};
  return kSplits;
}
std::string_view name_of(Split split) { return split_choices()[static_cast<size_t>(split)].name; }

int64_t choose_caption(int64_t count, uint64_t seed, int64_t epoch, int64_t id) {
  FEW_CHECK(count > 0, "sample {} has no captions to choose from", id);
  // The high bits choose: multiplication instead of a remainder.
  const uint64_t draw = stream_key(seed, Stream::augment, epoch, id) >> 32;
  return static_cast<int64_t>((draw * static_cast<uint64_t>(count)) >> 32);
}

Sample Dataset::get_in(int64_t index, int64_t bucket, uint64_t seed, int64_t epoch) const {
  FEW_CHECK(bucket == bucket_of(index), "{}: sample {} of bucket {} asked for bucket {}, and it cannot be framed anew",
            description(), index, bucket_of(index), bucket);
  return get(index, seed, epoch);
}

Json Dataset::conditioning_facts() const { return Json::object(); }

int64_t Batch::size() const { return ids.defined() ? ids.size(0) : 0; }

namespace {

// f(batch's tensor) over every tensor that may be there.
template <class F>
Batch map_tensors(const Batch& b, std::vector<std::string> captions, F&& f) {
  const auto g = [&](const Tensor& t) { return t.defined() ? f(t) : Tensor(); };
  return {.ids = g(b.ids), .images = g(b.images), .labels = g(b.labels), .captions = std::move(captions),
          .epochs = g(b.epochs), .micro = g(b.micro), .aesthetic = g(b.aesthetic), .latent_mean = g(b.latent_mean),
          .latent_std = g(b.latent_std), .context = g(b.context), .pooled = g(b.pooled)};
}

// Rows of one optional member, stacked: defined in all samples, or in none. float32 [B, ...].
Tensor stack_rows(std::span<const Sample> samples, Tensor Sample::*member, std::string_view name) {
  const Sample& first = samples.front();
  std::vector<int64_t> shape = {static_cast<int64_t>(samples.size())};
  if ((first.*member).defined()) shape.insert(shape.end(), (first.*member).sizes().begin(), (first.*member).sizes().end());
  Tensor out = (first.*member).defined() ? at::empty(shape, at::kFloat) : Tensor();
  float* to = out.defined() ? out.mutable_data_ptr<float>() : nullptr;
  for (const Sample& sample : samples) {
    const Tensor& row = sample.*member;
    if (row.defined() != out.defined())
      fail<DataError>("sample {} has {} {}, but sample {} of the same batch has {}", sample.id,
                      row.defined() ? "a" : "no", name, first.id, out.defined() ? "one" : "none");
    if (!row.defined()) continue;
    if (row.sizes() != (first.*member).sizes())
      fail<DataError>("sample {}: {} is {}, but that of sample {} of the same batch is {}", sample.id, name, shape_text(row),
                      first.id, shape_text(first.*member));
    FEW_CHECK(row.scalar_type() == at::kFloat && row.is_contiguous(), "sample {}: {} is not contiguous float32", sample.id, name);
    to = std::copy_n(row.const_data_ptr<float>(), row.numel(), to);
  }
  return out;
}

// 0 -> -1, 255 -> 1, without a division for each.
const std::array<float, 256>& signed_levels() {
  static const auto levels = [] {
    std::array<float, 256> table{};
    for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<float>(i) / 127.5f - 1.0f;
    return table;
  }();
  return levels;
}

// uint8 [C, H, W] each -> float32 [B, C, H, W] in [-1, 1]; undefined where no sample has an image.
Tensor stack_images(std::span<const Sample> samples) {
  const Sample& first = samples.front();
  if (!first.image.defined()) {
    for (const Sample& sample : samples)
      FEW_CHECK(!sample.image.defined() && sample.latent_mean.defined(), "sample {}: an image or a latent, as its batch has",
                sample.id);
    return {};
  }
  std::vector<int64_t> shape = first.image.sizes().vec();
  shape.insert(shape.begin(), static_cast<int64_t>(samples.size()));
  Tensor images = at::empty(shape, at::kFloat);
  float* out = images.mutable_data_ptr<float>();
  const std::array<float, 256>& levels = signed_levels();
  // Plain loops: loader threads call this, and an operator would start a team of OpenMP threads beside the trainer's.
  for (const Sample& sample : samples) {
    FEW_CHECK(sample.image.defined(), "sample {} has no image, but sample {} of its batch has one", sample.id, first.id);
    if (sample.image.sizes() != first.image.sizes())
      fail<DataError>("sample {} is {}, but sample {} of the same batch is {}: give the data set one image_size, or buckets",
                      sample.id, shape_text(sample.image), first.id, shape_text(first.image));
    FEW_CHECK(sample.image.scalar_type() == at::kByte && sample.image.is_contiguous(),
              "sample {}: not contiguous uint8", sample.id);
    const uint8_t* bytes = sample.image.const_data_ptr<uint8_t>();
    const int64_t count = sample.image.numel();
    for (int64_t i = 0; i < count; ++i) out[i] = levels[bytes[i]];
    out += count;
  }
  return images;
}

}  // namespace

Batch Batch::slice(int64_t begin, int64_t end) const {
  FEW_CHECK(begin >= 0 && begin <= end && end <= size(), "slice [{}, {}) of a batch of {}", begin, end, size());
  return map_tensors(*this, {captions.begin() + begin, captions.begin() + end},
                     [&](const Tensor& t) { return t.slice(0, begin, end); });
}

Batch Batch::to(at::Device device) const {
  return map_tensors(*this, captions, [&](const Tensor& t) { return t.to(device); });
}

Batch collate(std::span<const Sample> samples, std::span<const int64_t> epochs) {
  FEW_CHECK(!samples.empty(), "collate of no samples");
  FEW_CHECK(epochs.empty() || epochs.size() == samples.size(), "{} epochs for {} samples", epochs.size(), samples.size());
  const int64_t n = static_cast<int64_t>(samples.size());
  Batch batch{.ids = at::empty({n}, at::kLong), .images = stack_images(samples), .labels = at::empty({n}, at::kLong),
              .epochs = at::empty({n}, at::kLong), .aesthetic = at::empty({n}, at::kFloat),
              .latent_mean = stack_rows(samples, &Sample::latent_mean, "cached latent"),
              .latent_std = stack_rows(samples, &Sample::latent_std, "cached deviation"),
              .context = stack_rows(samples, &Sample::context, "cached text context"),
              .pooled = stack_rows(samples, &Sample::pooled, "cached pooled text")};
  std::vector<MicroConditioning> micro;
  for (int64_t i = 0; i < n; ++i) {
    const Sample& sample = samples[static_cast<size_t>(i)];
    batch.ids.mutable_data_ptr<int64_t>()[i] = sample.id;
    batch.labels.mutable_data_ptr<int64_t>()[i] = sample.label;
    batch.epochs.mutable_data_ptr<int64_t>()[i] = epochs.empty() ? 0 : epochs[static_cast<size_t>(i)];
    batch.aesthetic.mutable_data_ptr<float>()[i] = static_cast<float>(sample.aesthetic);
    batch.captions.push_back(sample.caption);
    const bool framed = sample.micro.target_height > 0;
    FEW_CHECK(framed || sample.image.defined(), "sample {}: neither an image nor micro-conditioning", sample.id);
    micro.push_back(framed ? sample.micro : whole_image(sample.image.size(-2), sample.image.size(-1)));
  }
  batch.micro = micro_tensor(micro);
  return batch;
}

}  // namespace fewstep
