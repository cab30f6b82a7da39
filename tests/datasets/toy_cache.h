// A data set whose latents lose nothing, and a folder for caches of it.
#pragma once
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "datasets/framing.h"
#include "datasets/latent_cache.h"
#include "src/base/error.h"
#include "src/base/hash.h"
#include "tests/support/scratch.h"

namespace fewstep::testing {

// Pictures of noise in three aspects, cropped and flipped at random, with captions that some of them share.
class Toy : public Dataset {
 public:
  explicit Toy(int64_t count = 23, double flip = 0.5) : count_(count) {
    framing_.crop = CropKind::random;
    framing_.flip = flip;
  }
  int64_t size() const override { return count_; }
  Sample get(int64_t index, uint64_t seed, int64_t epoch) const override {
    return get_in(index, bucket_of(index), seed, epoch);
  }
  Sample get_in(int64_t index, int64_t bucket, uint64_t seed, int64_t epoch) const override;
  bool can_reframe() const override { return true; }
  std::vector<BucketSize> buckets() const override {
    return {{32, 32}, {32, 64}, {48, 24}, {24, 48}};
  }  // the last: empty
  int64_t bucket_of(int64_t index) const override { return index == 0 ? 0 : 1 + index % 2; }
  SmallBuckets small_buckets() const override { return policy; }
  std::vector<std::string> captions(int64_t index) const override {
    return {"a thing", fmt::format("picture {}", index), fmt::format("kind {}", index % 3)};
  }
  std::vector<std::string> class_names() const override { return {"a", "b", "c", "d"}; }
  Json conditioning_facts() const override { return {{"crop", "random"}, {"flip", 0.5}}; }
  std::string description() const override { return fmt::format("toy of {}", count_); }
  std::string fingerprint() const override { return sha256_hex(description()); }

  int64_t broken = -1;
  bool scored = true;
  SmallBuckets policy = SmallBuckets::error;

 private:
  static Tensor picture(int64_t index);  // uint8 [3, h, w]
  int64_t count_;
  FramingConfig framing_;
};

// Latents that lose nothing: 8 x 8 pixels become channels, and the deviation is a function of them.
CacheEncoders lossless();
Tensor pixels_of(const Tensor& mean);  // the inverse, exact: half precision is finer than a grey level
CachedText toy_text(const std::vector<std::string>& captions);

struct Cached : ::testing::Test {
  ScratchFolder folder{"latent-cache"};
  std::filesystem::path file = folder / "train.h5";
  static CacheOptions options(int64_t variants = 3) {
    CacheOptions o;
    o.variants = variants, o.seed = 11, o.batch = 5, o.threads = 2;
    o.vae = "vae-identity-a", o.vae_name = "models/vae";
    return o;
  }
  LatentCacheConfig config() const {
    LatentCacheConfig c;
    c.train = file.string();
    return c;
  }
  std::unique_ptr<Dataset> open(bool in_memory = false) const {
    LatentCacheConfig c = config();
    c.in_memory = in_memory;
    return c.build(Split::train);
  }
};

}  // namespace fewstep::testing
