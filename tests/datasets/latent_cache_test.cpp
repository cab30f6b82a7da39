// Cached latents: every record is a variant of its sample with its own six numbers; a cache of something else is
// refused.
#include <gmock/gmock.h>

#include <algorithm>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "datasets/framing.h"
#include "datasets/latent_cache.h"
#include "datasets/loader.h"
#include "datasets/readable_samples.h"
#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/hash.h"
#include "src/config/config.h"
#include "src/io/hdf5.h"
#include "src/tensor/ops.h"
#include "tests/support/message_of.h"
#include "tests/support/scratch.h"

namespace fewstep {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;

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
  Sample get_in(int64_t index, int64_t bucket, uint64_t seed, int64_t epoch) const override {
    if (index == broken) fail<DataError>("picture {} is broken", index);
    Sample sample;
    sample.id = 100 + index;
    const Tensor whole = picture(index);
    const Frame frame = choose_frame(whole.size(1), whole.size(2), buckets()[static_cast<size_t>(bucket)], framing_,
                                     {seed, epoch, sample.id});
    sample.image = apply_frame(whole, frame);
    sample.micro = frame.micro;
    sample.label = index % 4;
    sample.aesthetic = 5 + 0.125 * static_cast<double>(index);
    if (index % 2 == 0) sample.attributes = {{"tone", index % 4 == 0 ? "dark" : "bright"}};
    const auto all = captions(index);
    sample.caption = all[static_cast<size_t>(choose_caption(static_cast<int64_t>(all.size()), seed, epoch, sample.id))];
    return sample;
  }
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
  SmallBuckets policy = SmallBuckets::error;

 private:
  static Tensor picture(int64_t index) {  // uint8 [3, h, w]
    const int64_t h = index % 3 == 0 ? 40 : 60, w = index % 3 == 0 ? 90 : 50;
    Tensor image = at::empty({3, h, w}, at::kByte);
    uint8_t* out = image.mutable_data_ptr<uint8_t>();
    for (int64_t i = 0; i < image.numel(); ++i) out[i] = static_cast<uint8_t>((i * 7919 + index * 104729) >> 3);
    return image;
  }
  int64_t count_;
  FramingConfig framing_;
};

// Latents that lose nothing: 8 x 8 pixels become channels, and the deviation is a function of them.
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

struct Cached : ::testing::Test {
  testing::ScratchFolder folder{"latent-cache"};
  fs::path file = folder / "train.h5";
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

// --- keys ---

TEST_F(Cached, TheKeyCoversEverythingTheCacheDependsOn) {
  const Toy toy;
  std::set<std::string> keys;
  const auto key = [&](const Toy& data, const std::function<void(CacheOptions&)>& change) {
    auto o = options();
    change(o);
    keys.insert(write_latent_cache(data, folder / "k.h5", lossless(), o).key());
  };
  key(toy, [](CacheOptions&) {});
  key(toy, [](CacheOptions& o) { o.vae = "b"; });
  key(toy, [](CacheOptions& o) { o.text = "t"; });
  key(toy, [](CacheOptions& o) { o.variants = 2; });
  key(toy, [](CacheOptions& o) { o.seed = 1; });
  key(toy, [](CacheOptions& o) { o.half = false; });
  key(toy, [](CacheOptions& o) { o.split = Split::heldout; });
  key(Toy(24), [](CacheOptions&) {});
  EXPECT_EQ(keys.size(), 8u);
  key(toy, [](CacheOptions& o) { o.vae_name = "elsewhere", o.batch = 7, o.threads = 1; });  // these change nothing
  EXPECT_EQ(keys.size(), 8u);
}

TEST_F(Cached, ACacheOfAnotherModelIsRefusedWithBothIdentitiesAndTheCommand) {
  auto o = options();
  o.text = "text-identity-a", o.text_name = "models/text";
  write_latent_cache(Toy(), file, lossless(), o);
  const auto data = open();
  const auto& cache = dynamic_cast<const LatentCache&>(*data);
  cache.check("vae-identity-a", "text-identity-a");
  const std::string vae = message_of<DataError>([&] { cache.check("vae-identity-b", "text-identity-a"); });
  for (const char* part : {"train.h5", "vae-identity-a", "vae-identity-b", "models/vae",
                           "fewstep data cache CONFIG --split train --vae MODEL_DIR --out", "--variants 3 --seed 11"})
    EXPECT_THAT(vae, HasSubstr(part));
  const std::string text = message_of<DataError>([&] { cache.check("vae-identity-a", "other"); });
  for (const char* part : {"text-identity-a", "other", "--vae models/vae", "--text MODEL_DIR"}) EXPECT_THAT(text, HasSubstr(part));
  EXPECT_THAT(message_of<DataError>([&] { cache.check("vae-identity-a", ""); }), HasSubstr("is none"));
}

// A data set kind for the `source` check.
struct ToyConfig : DatasetConfig {
  int64_t count = 23;
  double flip = 0.5;
  std::string_view kind() const override { return "toy"; }
  void describe(config::Visitor& v) override { v.field("count", count, "samples"); }
  struct Framed : Toy {
    Framed(int64_t n, double f) : Toy(n, f), flip(f) {}
    Json conditioning_facts() const override { return {{"crop", "random"}, {"flip", flip}}; }
    double flip;
  };
  std::unique_ptr<Dataset> build(Split) const override { return std::make_unique<Framed>(count, flip); }
};

TEST_F(Cached, ACacheOfAnotherSourceOrFramingIsRefused) {
  write_latent_cache(Toy(), file, lossless(), options());
  auto c = config();
  auto source = std::make_unique<ToyConfig>();
  ToyConfig& toy = *source;
  c.source = std::move(source);
  EXPECT_EQ(c.build(Split::train)->size(), 23);
  toy.count = 24;
  const std::string other = message_of<DataError>([&] { c.build(Split::train); });
  EXPECT_THAT(other, HasSubstr(sha256_hex("toy of 23").substr(0, 16)));
  EXPECT_THAT(other, HasSubstr(sha256_hex("toy of 24").substr(0, 16)));
  EXPECT_THAT(other, HasSubstr("make it anew with `fewstep data cache"));
  toy.count = 23, toy.flip = 0;
  EXPECT_THAT(message_of<DataError>([&] { c.build(Split::train); }), HasSubstr("framed as"));
  toy.flip = 0.5;
  c.heldout = c.train;
  EXPECT_THAT(message_of<DataError>([&] { c.build(Split::heldout); }), HasSubstr("holds the train split, and heldout"));
  EXPECT_THAT(message_of<ConfigError>([&] { c.build(Split::test); }), HasSubstr("data.test is not set"));
}

// --- what goes wrong ---

TEST_F(Cached, OtherFilesAreRefused) {
  auto other = io::H5File::create(file);
  other.write("x", at::zeros({2}));
  other.commit();
  EXPECT_FALSE(is_latent_cache(file));
  EXPECT_THAT(message_of<DataError>([&] { open(); }), HasSubstr("not a latent cache"));
  write_latent_cache(Toy(), file, lossless(), options());
  EXPECT_TRUE(is_latent_cache(file));
}

TEST_F(Cached, NothingRemainsOfACacheThatFailed) {
  Toy toy;
  toy.broken = 17;
  EXPECT_THAT(message_of<DataError>([&] { write_latent_cache(toy, file, lossless(), options()); }),
              HasSubstr("picture 17 is broken"));
  EXPECT_TRUE(fs::is_empty(folder.path()));

  auto encoders = lossless();
  encoders.images = [](const Tensor& images) -> CachedPosterior {
    Tensor mean = at::pixel_unshuffle(images, 8).clone();
    mean[0].fill_(std::numeric_limits<double>::quiet_NaN());
    return {mean, at::ones_like(mean)};
  };
  EXPECT_THAT(message_of<NumericError>([&] { write_latent_cache(Toy(), file, encoders, options()); }),
              HasSubstr("sample 100: the mean of its latents is not finite"));
  encoders.images = [](const Tensor& images) -> CachedPosterior {
    const Tensor mean = at::pixel_unshuffle(images, 8);
    return {mean, at::full_like(mean, 70000.0)};  // finite, but not in float16
  };
  EXPECT_THAT(message_of<NumericError>([&] { write_latent_cache(Toy(), file, encoders, options()); }),
              HasSubstr("--dtype float32"));
  EXPECT_TRUE(fs::is_empty(folder.path()));
  auto o = options();
  o.half = false;
  write_latent_cache(Toy(), file, encoders, o);
  EXPECT_EQ(open()->get(3, 0, 0).latent_std.max().item<float>(), 70000.0F);
}

TEST_F(Cached, AnEarlierCacheIsReplacedOnlyByAWholeOne) {
  write_latent_cache(Toy(), file, lossless(), options());
  const std::string before = open()->fingerprint();
  Toy broken(30);
  broken.broken = 29;
  EXPECT_THROW(write_latent_cache(broken, file, lossless(), options()), DataError);
  // Nor does a cache show another sample in its place, beside the captions of the one that cannot be read.
  auto skipped = std::make_unique<Toy>(30);
  skipped->broken = 29;
  const auto replacing = readable_samples(std::move(skipped), {.on_error = OnError::skip, .max_broken = 1});
  ASSERT_NE(replacing->get(29, 1, 0).id, 129);
  EXPECT_THAT(message_of<DataError>([&] { write_latent_cache(*replacing, file, lossless(), options()); }),
              HasSubstr("picture 29 is broken"));
  EXPECT_EQ(open()->fingerprint(), before);
  EXPECT_THROW(write_latent_cache(Toy(0), file, lossless(), options()), DataError);
  write_latent_cache(Toy(30), file, lossless(), options());
  EXPECT_NE(open()->fingerprint(), before);
}

TEST_F(Cached, ACacheIsNotMadeOfACache) {
  write_latent_cache(Toy(), file, lossless(), options());
  EXPECT_THAT(message_of<ConfigError>([&] { write_latent_cache(*open(), folder / "b.h5", lossless(), options()); }),
              HasSubstr("latents already"));
}

TEST_F(Cached, ChangedFactsAreNoticed) {
  write_latent_cache(Toy(), file, lossless(), options());
  // A file whose facts do not belong to its key, with a sidecar that fits it.
  const auto original = io::H5File::open(file);
  auto copy = io::H5File::create(folder / "copy.h5");
  Json facts = Json::parse(original.attribute_string("facts"));
  facts["vae"] = "forged";
  copy.set_attribute("format", original.attribute("format"));
  copy.set_attribute("facts", facts.dump());
  copy.set_attribute("key", original.attribute("key"));
  copy.commit();
  LatentCacheConfig c;
  c.train = (folder / "copy.h5").string();
  EXPECT_THAT(message_of<DataError>([&] { c.build(Split::train); }), HasSubstr("the file was changed"));
}

// --- identities and config ---

TEST_F(Cached, IdentitiesFollowContentsAndNotPlaces) {
  const auto write = [&](const fs::path& path, const std::string& text) {
    fs::create_directories(path.parent_path());
    write_text_atomic(path, text);
  };
  write(folder / "m/vae/config.json", "{}");
  write(folder / "m/vae/weights.safetensors", "abc");
  write(folder / "n/vae/config.json", "{}");
  write(folder / "n/vae/weights.safetensors", "abc");
  EXPECT_EQ(vae_identity(folder / "m"), vae_identity(folder / "n/vae"));
  EXPECT_EQ(vae_folder(folder / "m"), folder / "m/vae");
  const std::string before = vae_identity(folder / "m");
  write(folder / "m/vae/weights.safetensors", "abd");
  EXPECT_NE(vae_identity(folder / "m"), before);
  EXPECT_THAT(message_of<DataError>([&] { vae_identity(folder / "none"); }), HasSubstr("vae/config.json"));
  write(folder / "m/text_encoder/config.json", "{}");
  write(folder / "m/text_encoder_2/config.json", "{}");
  const std::string both = text_encoder_identity(folder / "m");
  fs::remove_all(folder / "m/text_encoder_2");
  EXPECT_NE(text_encoder_identity(folder / "m"), both);
  EXPECT_THAT(message_of<DataError>([&] { text_encoder_identity(folder / "n"); }), HasSubstr("no text_encoder"));
}

struct CacheRoot {
  std::unique_ptr<DatasetConfig> data;
};
void describe(config::Visitor& v, CacheRoot& root) { v.field("data", root.data, "data set", dataset_kinds()); }

TEST(CacheConfig, IsReadWrittenAndExplainedWithItsSource) {
  auto root = config::parse<CacheRoot>(
      "data: {kind: latent_cache, train: a.h5, small_buckets: drop, source: {kind: fashion_mnist, image_size: 40}}");
  const auto& c = dynamic_cast<const LatentCacheConfig&>(*root.data);
  EXPECT_EQ(c.train, "a.h5");
  EXPECT_EQ(c.small_buckets, SmallBuckets::drop);
  ASSERT_TRUE(c.source);
  EXPECT_EQ(c.source->kind(), "fashion_mnist");
  auto again = config::parse<CacheRoot>(config::to_yaml(root));
  EXPECT_EQ(config::to_yaml(again), config::to_yaml(root));
  auto plain = config::parse<CacheRoot>("data: {kind: latent_cache, train: a.h5}");
  EXPECT_FALSE(dynamic_cast<const LatentCacheConfig&>(*plain.data).source);
  EXPECT_THAT(config::explain(root), HasSubstr("data cache"));
  EXPECT_THAT(message_of<ConfigError>([&] {
                config::parse<CacheRoot>("data: {kind: latent_cache, train: a.h5, source: {kind: latent_cache}}");
              }),
              HasSubstr("latent_cache"));
}

// --- HDF5: what the cache needs of it ---

TEST_F(Cached, HalvesAndGroupsSurviveHdf5) {
  const Tensor values = at::tensor({0.0, 1.0, -2.5, 65504.0, 6e-8, 0.333}, at::kDouble).to(at::kHalf).view({3, 2});
  auto out = io::H5File::create(file);
  out.create_dataset("group/inner/x", at::kHalf, {.row = {2}});
  out.append("group/inner/x", values.slice(0, 0, 1));
  out.append("group/inner/x", values.slice(0, 1, 3));
  out.write("group/y", at::arange(3));
  EXPECT_TRUE(out.contains("group/inner/x"));
  EXPECT_FALSE(out.contains("group/none"));
  EXPECT_FALSE(out.contains("none/x"));
  out.commit();
  const auto in = io::H5File::open(file);
  EXPECT_EQ(in.dtype("group/inner/x"), at::kHalf);
  EXPECT_TRUE(in.read("group/inner/x").equal(values));
  EXPECT_TRUE(in.read_rows("group/inner/x", 1, 3).equal(values.slice(0, 1, 3)));
  EXPECT_EQ(in.read("group/y").numel(), 3);
}

}  // namespace
}  // namespace fewstep
