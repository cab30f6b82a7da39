#include "tests/datasets/toy_cache.h"

#include "src/tensor/ops.h"

namespace fewstep::testing {

Sample Toy::get_in(int64_t index, int64_t bucket, uint64_t seed, int64_t epoch) const {
  if (index == broken) fail<DataError>("picture {} is broken", index);
  Sample sample;
  sample.id = 100 + index;
  const Tensor whole = picture(index);
  const Frame frame = choose_frame(whole.size(1), whole.size(2), buckets()[static_cast<size_t>(bucket)], framing_,
                                   {seed, epoch, sample.id});
  sample.image = apply_frame(whole, frame);
  sample.micro = frame.micro;
  sample.label = index % 4;
  if (scored) sample.aesthetic = 5 + 0.125 * static_cast<double>(index);
  if (index % 2 == 0) sample.attributes = {{"tone", index % 4 == 0 ? "dark" : "bright"}};
  const auto all = captions(index);
  sample.caption = all[static_cast<size_t>(choose_caption(static_cast<int64_t>(all.size()), seed, epoch, sample.id))];
  return sample;
}

Tensor Toy::picture(int64_t index) {
  const int64_t h = index % 3 == 0 ? 40 : 60, w = index % 3 == 0 ? 90 : 50;
  Tensor image = at::empty({3, h, w}, at::kByte);
  uint8_t* out = image.mutable_data_ptr<uint8_t>();
  for (int64_t i = 0; i < image.numel(); ++i) out[i] = static_cast<uint8_t>((i * 7919 + index * 104729) >> 3);
  return image;
}

CacheEncoders lossless() {
  CacheEncoders encoders;
  encoders.images = [](const Tensor& images) -> CachedPosterior {
    const Tensor mean = at::pixel_unshuffle(images, 8);
    return {mean, mean.abs() * 0.5 + 0.25};
  };
  return encoders;
}
Tensor pixels_of(const Tensor& mean) {  // the inverse, exact: half precision is finer than a grey level
  return at::pixel_shuffle(mean.unsqueeze(0), 8).add(1).mul(127.5).round().to(at::kByte)[0];
}

CachedText toy_text(const std::vector<std::string>& captions) {
  const auto n = static_cast<int64_t>(captions.size());
  Tensor context = at::zeros({n, 5, 4}), pooled = at::zeros({n, 3});
  for (int64_t i = 0; i < n; ++i) {
    const auto hash = static_cast<int64_t>(fnv1a64(captions[static_cast<size_t>(i)]) % 1000);
    context[i].fill_(static_cast<double>(hash) / 8), pooled[i].fill_(static_cast<double>(hash) / 16);
  }
  return {context, pooled};
}

}  // namespace fewstep::testing
