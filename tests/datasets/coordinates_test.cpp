// The proof of micro-conditioning: from the pixels that a network sees, the size of the file, the crop and the flip are
// recovered and compared with the six numbers; the same check finds the mistakes that other trainers are known for.
#include <gmock/gmock.h>

#include <algorithm>
#include <set>

#include "datasets/framing.h"
#include "datasets/image_folder.h"
#include "datasets/loader.h"
#include "src/base/philox.h"
#include "src/config/config.h"
#include "src/tensor/ops.h"
#include "tests/support/coordinate_images.h"
#include "tests/support/scratch.h"

namespace fewstep {
namespace {

using testing::coordinate_image;
using testing::micro_mistakes;
using testing::recover_frame;

// An image size whose nearest bucket is `b`, about `scale` times as large, as far from its aspect (wider or taller) as
// the bucket reaches.
BucketSize image_for(int64_t b, double scale, bool wider) {
  const BucketSize bucket = sdxl_buckets()[static_cast<size_t>(b)];
  for (double stretch : {1.3, 1.15, 1.08, 1.04, 1.02, 1.01}) {
    const auto side = [&](int64_t n, double s) { return std::lround(static_cast<double>(n) * scale * s); };
    const BucketSize image{side(bucket.height, wider ? 1 : stretch), side(bucket.width, wider ? stretch : 1)};
    if (nearest_bucket(image.height, image.width, sdxl_buckets()) == b) return image;
  }
  ADD_FAILURE() << "no image for " << bucket_text(bucket);
  return bucket;
}

TEST(Coordinates, AllBucketsSizesAndFlips) {
  int64_t with_slack = 0, flipped = 0;
  std::array<double, 3> worst{};  // crop, size (pixels), size (share)
  for (int64_t b = 0; b < 40; ++b)
    for (int k = 0; k < 3; ++k) {
      const double scale = std::array{0.3, 0.9, 1.37}[static_cast<size_t>(k)];
      const BucketSize size = image_for(b, scale, (b + k) % 2 == 0), target = sdxl_buckets()[static_cast<size_t>(b)];
      const Tensor image = coordinate_image(size.height, size.width);
      for (double flip : {0.0, 1.0}) {
        const Frame f = choose_frame(size.height, size.width, target, {.crop = CropKind::random, .flip = flip}, {11, k, b});
        const Tensor seen = apply_frame(image, f);
        const auto r = recover_frame(seen);
        EXPECT_EQ(micro_mistakes(r, f.micro), "") << bucket_text(target) << " " << micro_text(f.micro);
        const auto off = [](double a, int64_t n) { return std::abs(a - static_cast<double>(n)); };
        worst[0] = std::max({worst[0], off(r.x.offset, f.micro.crop_left), off(r.y.offset, f.micro.crop_top)});
        worst[1] = std::max({worst[1], off(r.x.original, size.width), off(r.y.original, size.height)});
        worst[2] = std::max({worst[2], off(r.x.original, size.width) / static_cast<double>(size.width), off(r.y.original, size.height) / static_cast<double>(size.height)});
        with_slack += f.micro.crop_left + f.micro.crop_top > 2;
        flipped += f.micro.flipped;
      }
    }
  RecordProperty("worst_crop_pixels", fmt::format("{:.3f}", worst[0]));
  fmt::print("worst of 240 frames: crop {:.3f} resized pixels, original size {:.3f} pixels ({:.5f} of it)\n", worst[0], worst[1], worst[2]);
  EXPECT_EQ(flipped, 120);
  EXPECT_GT(with_slack, 150);
}

// What each of them would have said, where it differs from the truth by more than what can be measured.
struct Mistake {
  const char* name;
  MicroConditioning (*make)(const Frame&);
};
const Mistake kMistakes[] = {
    {"crop on the wrong axis", [](const Frame& f) { MicroConditioning m = f.micro; std::swap(m.crop_top, m.crop_left); return m; }},
    {"flip after the crop, offset not mirrored", [](const Frame& f) { MicroConditioning m = f.micro; m.crop_left = f.stored_left(); return m; }},
    {"flip not told", [](const Frame& f) { MicroConditioning m = f.micro; m.flipped = false; return m; }},
    {"resized size as the original", [](const Frame& f) { MicroConditioning m = f.micro; m.original_height = f.resized_height, m.original_width = f.resized_width; return m; }},
    {"target as the original", [](const Frame& f) { MicroConditioning m = f.micro; m.original_height = m.target_height, m.original_width = m.target_width; return m; }},
    {"width before height", [](const Frame& f) { MicroConditioning m = f.micro; std::swap(m.original_height, m.original_width); return m; }},
    {"crop in original pixels", [](const Frame& f) {
       MicroConditioning m = f.micro;
       m.crop_left = m.crop_left * m.original_width / f.resized_width, m.crop_top = m.crop_top * m.original_height / f.resized_height;
       return m;
     }},
    {"random crop told as the centre", [](const Frame& f) {
       MicroConditioning m = f.micro;
       m.crop_top = (f.resized_height - m.target_height) / 2, m.crop_left = (f.resized_width - m.target_width) / 2;
       return m;
     }},
};

// Largest difference of any number; a flip counts as large.
int64_t distance(const MicroConditioning& a, const MicroConditioning& b) {
  const auto x = micro_numbers(a), y = micro_numbers(b);
  int64_t most = a.flipped != b.flipped ? 1000 : 0;
  for (size_t i = 0; i < x.size(); ++i) most = std::max(most, std::abs(x[i] - y[i]));
  return most;
}

TEST(Coordinates, TheCheckFindsPlantedMistakes) {
  std::map<std::string, int64_t> found;
  for (int64_t b = 0; b < 40; b += 3) {
    const BucketSize size = image_for(b, 0.6, b % 2 == 0);
    const Tensor image = coordinate_image(size.height, size.width);
    for (int64_t target : {b, (b + 20) % 40}) {  // the second one: much slack, as merged buckets have it
      const Frame f = choose_frame(size.height, size.width, sdxl_buckets()[static_cast<size_t>(target)],
                                   {.crop = CropKind::random, .flip = 1}, {5, 0, b});
      const auto seen = recover_frame(apply_frame(image, f));
      EXPECT_EQ(micro_mistakes(seen, f.micro), "") << micro_text(f.micro);
      for (const Mistake& mistake : kMistakes) {
        const MicroConditioning said = mistake.make(f);
        if (distance(said, f.micro) <= 2) continue;  // no mistake here: no slack, or a square
        EXPECT_NE(micro_mistakes(seen, said), "") << mistake.name << ": " << micro_text(said) << " for " << micro_text(f.micro);
        ++found[mistake.name];
      }
    }
  }
  for (const Mistake& mistake : kMistakes) EXPECT_GE(found[mistake.name], 5) << mistake.name;
}

// Pixels averaged by 8 x 8, as a linear autoencoder's latents: the same check, coarser pixels.
TEST(Coordinates, PooledImagesCanBeChecked) {
  for (int64_t b : {0, 13, 20, 33}) {
    const BucketSize size = image_for(b, 1.2, true), target = sdxl_buckets()[static_cast<size_t>(b)];
    const Frame f = choose_frame(size.height, size.width, target, {.crop = CropKind::random, .flip = 0.5}, {2, 0, b});
    const Tensor pooled = at::avg_pool2d(io::to_float(apply_frame(coordinate_image(size.height, size.width), f)), {8, 8});
    EXPECT_EQ(micro_mistakes(pooled, f.micro, 8), "") << micro_text(f.micro);
  }
}

// From files through headers, buckets, workers and collation to the tensor that the network embeds.
TEST(Coordinates, FromFilesToTheBatchsTensor) {
  const testing::ScratchFolder scratch("coordinates");
  std::filesystem::create_directories(scratch.path());
  for (int64_t b = 0; b < 40; ++b)
    for (int k = 0; k < 2; ++k) {
      const BucketSize size = image_for(b, k == 0 ? 0.2 : 0.27, k == 0);
      io::write_image(scratch / fmt::format("{}-{}.png", b, k), coordinate_image(size.height, size.width));
    }
  ImageFolderConfig config;
  config.folder = scratch.path().string();
  config.require_captions = false;
  config.images.heldout = config.images.test = 0;
  config.images.targets = {.framing = {.crop = CropKind::random, .flip = 0.5}, .buckets = {.kind = BucketKind::sdxl}};
  const auto data = config.build(Split::train);
  ASSERT_EQ(data->size(), 80);
  Loader loader(*data, {.batch_size = 2, .seed = 3, .workers = 2});
  std::set<int64_t> ids;
  std::set<std::pair<int64_t, int64_t>> shapes;
  int64_t flips = 0;
  for (int64_t step = 0; step < 40; ++step) {
    const Batch batch = loader.next();
    shapes.insert({batch.images.size(2), batch.images.size(3)});
    for (int64_t i = 0; i < batch.size(); ++i) {
      std::array<int64_t, kMicroNumbers> numbers{};
      for (int64_t n = 0; n < kMicroNumbers; ++n) numbers[static_cast<size_t>(n)] = static_cast<int64_t>(batch.micro[i][n].item<float>());
      const auto seen = recover_frame(batch.images[i]);
      const bool flipped = seen.x.mirrored;  // no number tells it
      EXPECT_EQ(micro_mistakes(seen, micro_of_numbers(numbers, flipped)), "") << batch.ids[i].item<int64_t>();
      flips += flipped;
      ids.insert(batch.ids[i].item<int64_t>());
    }
  }
  EXPECT_EQ(ids.size(), 80u);
  EXPECT_EQ(shapes.size(), 40u);
  EXPECT_GT(flips, 20);
  EXPECT_LT(flips, 60);
}

}  // namespace
}  // namespace fewstep
