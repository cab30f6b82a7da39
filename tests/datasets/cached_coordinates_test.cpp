// The proof of micro-conditioning through the cache: the six numbers in every record are what its own latents show, for
// all 40 buckets, flipped and not. (Trainers that cache latents and redraw the crop afterwards fail exactly here.)
#include <gmock/gmock.h>

#include <set>

#include "datasets/image_folder.h"
#include "datasets/latent_cache.h"
#include "datasets/loader.h"
#include "src/tensor/ops.h"
#include "tests/support/coordinate_images.h"
#include "tests/support/scratch.h"

namespace fewstep {
namespace {

using testing::micro_mistakes;
using testing::recover_frame;

// The paper's 40 with sides divided by `shrink`.
std::vector<BucketSize> buckets_over(int64_t shrink) {
  std::vector<BucketSize> sizes;
  for (const BucketSize& b : sdxl_buckets()) sizes.push_back({b.height / shrink, b.width / shrink});
  return sizes;
}

// A size whose nearest bucket is `b`, `scale` times as large, with as much slack as the bucket allows.
BucketSize size_for(int64_t b, double scale, bool wider, const std::vector<BucketSize>& table) {
  const BucketSize bucket = table[static_cast<size_t>(b)];
  for (double stretch : {1.3, 1.15, 1.08, 1.04, 1.02, 1.01}) {
    const auto side = [&](int64_t n, double s) { return std::lround(static_cast<double>(n) * scale * s); };
    const BucketSize size{side(bucket.height, wider ? 1 : stretch), side(bucket.width, wider ? stretch : 1)};
    if (nearest_bucket(size.height, size.width, table) == b) return size;
  }
  ADD_FAILURE() << "no image for " << bucket_text(bucket);
  return bucket;
}

struct CachedCoordinates : ::testing::Test {
  testing::ScratchFolder folder{"cached-coordinates"};

  // One image a bucket, cropped at random and mirrored in every second case.
  std::unique_ptr<Dataset> images(int64_t shrink, double scale) const {
    const auto table = buckets_over(shrink);
    ImageFolderConfig config;
    config.folder = (folder / "images").string();
    config.require_captions = false;
    config.images.heldout = config.images.test = 0;
    config.images.targets.framing = {.crop = CropKind::random, .flip = 0.5};
    config.images.targets.buckets.kind = BucketKind::list;
    for (const BucketSize& size : table) config.images.targets.buckets.sizes.push_back(bucket_text(size));
    std::filesystem::create_directories(config.folder);
    for (int64_t b = 0; b < 40; ++b) {
      const BucketSize size = size_for(b, scale, b % 2 == 0, table);
      io::write_image(std::filesystem::path(config.folder) / fmt::format("{:02}.png", b),
                      testing::coordinate_image(size.height, size.width));
    }
    return config.build(Split::train);
  }

  std::unique_ptr<Dataset> cached(const Dataset& source, const CacheEncoders& encoders, int64_t variants) const {
    CacheOptions options;
    options.variants = variants, options.seed = 21, options.batch = 2, options.threads = 2;
    options.vae = "pixels";
    write_latent_cache(source, folder / "train.h5", encoders, options);
    LatentCacheConfig config;
    config.train = (folder / "train.h5").string();
    return config.build(Split::train);
  }
};

// Pixels that a latent space of 8 x 8 pixels a position keeps: every value, and in halves every grey level.
TEST_F(CachedCoordinates, NumbersOfEveryRecordAreWhatItsPixelsSay) {
  constexpr int64_t kVariants = 4;
  const auto source = images(4, 1.4);
  CacheEncoders encoders;
  encoders.images = [](const Tensor& pixels) -> CachedPosterior {
    const Tensor mean = at::pixel_unshuffle(pixels, 8);
    return {mean, at::zeros_like(mean)};
  };
  const auto cache = cached(*source, encoders, kVariants);
  ASSERT_EQ(cache->size(), 40);
  std::set<int64_t> buckets;
  std::set<std::string> numbers;
  int64_t flips = 0;
  for (int64_t i = 0; i < cache->size(); ++i)
    for (int64_t epoch = 0; epoch < kVariants; ++epoch) {
      const Sample sample = cache->get(i, 3, epoch);
      const Tensor pixels = at::pixel_shuffle(sample.latent_mean.unsqueeze(0), 8)[0];
      EXPECT_EQ(micro_mistakes(pixels, sample.micro), "") << i << ": " << micro_text(sample.micro);
      const BucketSize bucket = cache->buckets()[static_cast<size_t>(cache->bucket_of(i))];
      EXPECT_EQ(bucket.height, sample.micro.target_height);
      EXPECT_EQ(bucket.width, sample.micro.target_width);
      buckets.insert(cache->bucket_of(i));
      numbers.insert(micro_text(sample.micro));
      flips += sample.micro.flipped;
    }
  EXPECT_EQ(buckets.size(), 40u);
  EXPECT_GT(numbers.size(), 120u);  // variants are crops of their own
  EXPECT_GT(flips, 40);
  EXPECT_LT(flips, 120);
}

// Other numbers than the record's own are noticed: those of another variant of the same image, as when the crop is
// drawn again behind the cache.
TEST_F(CachedCoordinates, NumbersOfAnotherVariantAreNoticed) {
  const auto source = images(4, 1.4);
  int64_t noticed = 0, different = 0;
  for (int64_t i = 0; i < source->size(); ++i) {
    const Sample a = source->get(i, 21, 0), b = source->get(i, 21, 1);
    if (std::abs(a.micro.crop_left - b.micro.crop_left) + std::abs(a.micro.crop_top - b.micro.crop_top) < 3) continue;
    ++different;
    noticed += !micro_mistakes(a.image, b.micro).empty();
  }
  EXPECT_GT(different, 10);
  EXPECT_EQ(noticed, different);
}

// At full size, through a linear encoder that averages 8 x 8 pixels, and through the loader to the batch.
TEST_F(CachedCoordinates, FullSizeLatentsOfALinearEncoderThroughTheLoader) {
  const auto source = images(1, 0.27);
  CacheEncoders encoders;
  encoders.images = [](const Tensor& pixels) -> CachedPosterior {
    const Tensor mean = at::avg_pool2d(pixels, {8, 8});
    return {mean, at::zeros_like(mean)};
  };
  const auto cache = cached(*source, encoders, 2);
  Loader loader(*cache, {.batch_size = 1, .seed = 3, .workers = 1});
  std::set<std::pair<int64_t, int64_t>> shapes;
  for (int64_t step = 0; step < 80; ++step) {  // two epochs: both variants
    const Batch batch = loader.next();
    std::array<int64_t, kMicroNumbers> six{};
    for (size_t n = 0; n < six.size(); ++n)
      six[n] = static_cast<int64_t>(batch.micro[0][static_cast<int64_t>(n)].item<float>());
    const Tensor latent = batch.latent_mean[0];
    const MicroConditioning micro = micro_of_numbers(six, recover_frame(latent, 8).x.mirrored);
    EXPECT_EQ(micro_mistakes(latent, micro, 8), "") << micro_text(micro);
    shapes.insert({latent.size(1), latent.size(2)});
  }
  EXPECT_EQ(shapes.size(), 40u);
}

}  // namespace
}  // namespace fewstep
