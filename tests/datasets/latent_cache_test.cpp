// Cached latents: every record is a variant of its sample with its own six numbers, in its own bucket, with its text.
#include <gmock/gmock.h>

#include <algorithm>
#include <map>
#include <set>

#include "datasets/loader.h"
#include "src/tensor/ops.h"
#include "tests/datasets/toy_cache.h"
#include "tests/support/message_of.h"

namespace fewstep {
namespace {

using ::testing::HasSubstr;
using testing::Cached;
using testing::lossless;
using testing::pixels_of;
using testing::Toy;
using testing::toy_text;

TEST_F(Cached, EveryRecordIsAVariantOfItsSampleWithItsOwnNumbers) {
  const Toy toy;
  for (bool half : {true, false}) {
    auto o = options();
    o.half = half;
    write_latent_cache(toy, file, lossless(), o);
    for (bool in_memory : {false, true}) {
      const auto cache = open(in_memory);
      ASSERT_EQ(cache->size(), toy.size());
      std::set<std::string> distinct;
      for (int64_t i = 0; i < cache->size(); ++i) {
        std::vector<bool> seen(3, false);
        for (int64_t epoch = 0; epoch < 3; ++epoch) {
          const Sample cached = cache->get(i, 77, epoch);
          EXPECT_FALSE(cached.image.defined());
          const Tensor pixels = pixels_of(cached.latent_mean);
          int64_t found = -1;
          for (int64_t k = 0; k < 3; ++k)
            if (const Sample source = toy.get(i, 11, k); source.image.equal(pixels)) {
              found = k;
              seen[static_cast<size_t>(k)] = true;  // two of them may be equal
              EXPECT_EQ(cached.micro, source.micro) << micro_text(cached.micro) << " / " << micro_text(source.micro);
              EXPECT_EQ(cached.id, source.id);
              EXPECT_EQ(cached.label, source.label);
              EXPECT_EQ(cached.aesthetic, source.aesthetic);
              EXPECT_EQ(cached.attributes, source.attributes);
              EXPECT_EQ(cached.caption, toy.get(i, 77, epoch).caption);  // texts are drawn by the run's own seed
            }
          ASSERT_GE(found, 0) << "sample " << i << " epoch " << epoch << " is no variant";
          const double off = (cached.latent_std - (cached.latent_mean.abs() * 0.5 + 0.25)).abs().max().item<double>();
          EXPECT_LT(off, half ? 1e-3 : 1e-6);
          distinct.insert(micro_text(cached.micro));
        }
        EXPECT_EQ(std::count(seen.begin(), seen.end(), true), 3) << "K epochs show K variants";
      }
      EXPECT_GT(distinct.size(), 30u);
      EXPECT_EQ(cache->class_names(), toy.class_names());
      EXPECT_EQ(cache->captions(4), toy.captions(4));
    }
  }
}

TEST_F(Cached, TheVariantIsChosenBySeedEpochAndId) {
  write_latent_cache(Toy(), file, lossless(), options());
  const auto cache = open();
  int64_t differ_by_seed = 0, differ_by_epoch = 0;
  for (int64_t i = 0; i < cache->size(); ++i) {
    const Sample a = cache->get(i, 1, 4);
    EXPECT_EQ(a.micro, cache->get(i, 1, 4).micro);
    EXPECT_EQ(a.micro, cache->get(i, 1, 7).micro);  // three variants: every third epoch the same
    differ_by_seed += a.micro != cache->get(i, 2, 4).micro;
    differ_by_epoch += a.micro != cache->get(i, 1, 5).micro;
  }
  EXPECT_GT(differ_by_seed, 5);
  EXPECT_GT(differ_by_epoch, 15);
}

TEST_F(Cached, ThreadsAndBatchesChangeNothing) {
  const Toy toy;
  auto o = options();
  write_latent_cache(toy, file, lossless(), o);
  o.threads = 1, o.batch = 1;
  write_latent_cache(toy, folder / "one.h5", lossless(), o);
  LatentCacheConfig other;
  other.train = (folder / "one.h5").string();
  const auto a = open(), b = other.build(Split::train);
  EXPECT_EQ(a->fingerprint(), b->fingerprint());
  for (int64_t i = 0; i < a->size(); ++i) {
    EXPECT_TRUE(a->get(i, 3, 1).latent_mean.equal(b->get(i, 3, 1).latent_mean));
    EXPECT_EQ(a->get(i, 3, 1).micro, b->get(i, 3, 1).micro);
  }
}

TEST_F(Cached, BucketsAreKeptAndALoaderNeverMixesThem) {
  write_latent_cache(Toy(40), file, lossless(), options());
  auto c = config();
  c.small_buckets = SmallBuckets::drop;  // the first bucket holds one sample
  const auto cache = c.build(Split::train);
  const Toy toy(40);
  EXPECT_EQ(cache->buckets(), toy.buckets());
  for (int64_t i = 0; i < toy.size(); ++i) EXPECT_EQ(cache->bucket_of(i), toy.bucket_of(i));
  Loader loader(*cache, {.batch_size = 4, .seed = 5, .workers = 2});
  std::set<std::vector<int64_t>> shapes;
  for (int step = 0; step < 30; ++step) {
    const Batch batch = loader.next();
    EXPECT_FALSE(batch.images.defined());
    ASSERT_EQ(batch.latent_mean.size(0), 4);
    EXPECT_EQ(batch.latent_mean.sizes(), batch.latent_std.sizes());
    const auto target = batch.micro.slice(1, 4, 6);
    EXPECT_TRUE(target.eq(target[0]).all().item<bool>());
    EXPECT_EQ(batch.latent_mean.size(2) * 8, target[0][0].item<int64_t>());
    EXPECT_EQ(batch.latent_mean.size(3) * 8, target[0][1].item<int64_t>());
    shapes.insert(batch.latent_mean.sizes().vec());
  }
  EXPECT_EQ(shapes.size(), 2u);
  EXPECT_THAT(message_of<ConfigError>([&] { Loader(*open(), {.batch_size = 4}); }), HasSubstr("32x32"));
}

TEST_F(Cached, SmallBucketsAreMergedWhileTheImagesAreThere) {
  Toy toy(40);
  toy.policy = SmallBuckets::merge;
  auto o = options();
  o.smallest_bucket = 4;
  write_latent_cache(toy, file, lossless(), o);
  const auto cache = open();
  EXPECT_EQ(cache->size(), 40);
  EXPECT_NE(cache->bucket_of(0), 0);  // was alone in 32x32
  EXPECT_EQ(cache->get(0, 1, 0).micro.target_height, cache->buckets()[static_cast<size_t>(cache->bucket_of(0))].height);
  toy.policy = SmallBuckets::drop;
  write_latent_cache(toy, file, lossless(), o);
  const auto dropped = open();
  EXPECT_EQ(dropped->size(), 39);
  EXPECT_EQ(dropped->get(0, 1, 0).id, 101);
}

TEST_F(Cached, TextsAreEmbeddedOncePerCaptionAndForTheEmptyPrompt) {
  const Toy toy;
  auto encoders = lossless();
  auto calls = std::make_shared<std::map<std::string, int>>();
  encoders.texts = [calls](const std::vector<std::string>& captions) {
    for (const auto& caption : captions) ++(*calls)[caption];
    return toy_text(captions);
  };
  auto o = options(2);
  o.text = "text-identity", o.text_name = "models/text";
  write_latent_cache(toy, file, encoders, o);
  EXPECT_EQ(calls->size(), 1u + 1 + 23 + 3);  // "", "a thing", one each, three kinds
  for (const auto& [caption, n] : *calls) EXPECT_EQ(n, 1) << caption;
  for (bool in_memory : {false, true}) {
    const auto data = open(in_memory);
    const auto& cache = dynamic_cast<const LatentCache&>(*data);
    EXPECT_TRUE(cache.null_context().equal(toy_text({""}).context[0]));
    EXPECT_TRUE(cache.null_pooled().equal(toy_text({""}).pooled[0]));
    for (int64_t i = 0; i < cache.size(); ++i)
      for (int64_t epoch = 0; epoch < 3; ++epoch) {
        const Sample sample = cache.get(i, 4, epoch);
        EXPECT_TRUE(sample.context.equal(toy_text({sample.caption}).context[0])) << sample.caption;
        EXPECT_TRUE(sample.pooled.equal(toy_text({sample.caption}).pooled[0])) << sample.caption;
      }
    const Batch batch = load_range(cache, 1, 2, 0);
    EXPECT_EQ(batch.context.sizes().vec(), (std::vector<int64_t>{1, 5, 4}));
    EXPECT_EQ(batch.pooled.sizes().vec(), (std::vector<int64_t>{1, 3}));
    EXPECT_EQ(cache.latent_shape(1), (std::vector<int64_t>{192, 4, 8}));
  }
}

// Samples without a score stay without one.
TEST_F(Cached, ScoresAreKeptAndSoIsTheirAbsence) {
  Toy toy;
  toy.scored = false;
  write_latent_cache(toy, file, lossless(), options());
  for (int64_t i = 0; i < 3; ++i) EXPECT_EQ(open()->get(i, 1, 0).aesthetic, kNoScore);
}

}  // namespace
}  // namespace fewstep
