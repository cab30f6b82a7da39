// What a latent cache depends on, and what is refused: caches of something else, changed and broken files.
#include <gmock/gmock.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "datasets/readable_samples.h"
#include "src/base/files.h"
#include "src/config/config.h"
#include "src/io/hdf5.h"
#include "src/tensor/ops.h"
#include "tests/datasets/toy_cache.h"
#include "tests/support/message_of.h"

namespace fewstep {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using testing::Cached;
using testing::lossless;
using testing::Toy;

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

// A file with facts, key and attributes of its own, and the tables of one sample.
void write_small_cache(const fs::path& path, const Json& facts, const std::string& key, const std::map<std::string, std::string>& more) {
  auto out = io::H5File::create(path);
  out.set_attribute("format", std::string("fewstep latent cache 1"));
  out.set_attribute("facts", facts.dump());
  out.set_attribute("key", key);
  for (const auto& [name, text] : more) out.set_attribute(name, text);
  for (const char* name : {"ids", "labels", "bucket", "row"}) out.write(name, at::zeros({1}, at::kLong));
  out.write("aesthetic", at::zeros({1}, at::kDouble));
  out.commit();
}

// The file, the key and the value are named, whatever stands where something else should.
TEST_F(Cached, WrongTypesInAFileAreNamed) {
  const CacheFacts good = write_latent_cache(Toy(), file, lossless(), options());
  LatentCacheConfig c;
  c.train = (folder / "bad.h5").string();
  const auto refused = [&](const Json& facts, const std::string& key, const std::map<std::string, std::string>& more) {
    write_small_cache(folder / "bad.h5", facts, key, more);
    return message_of<DataError>([&] { c.build(Split::train); });
  };
  struct Wrong {
    const char* key;
    Json value;
    const char* message;
  };
  for (const auto& [key, value, message] : {Wrong{"variants", "three", "variants: expected an integer, found \"three\""},
                                            Wrong{"vae", 7, "vae: expected a string, found 7"},
                                            Wrong{"split", nullptr, "split is missing"},
                                            Wrong{"version", 1.5, "version: expected an integer, found 1.5"}}) {
    Json facts = good.to_json();
    facts[key] = value;
    EXPECT_THAT(refused(facts, good.key(), {}), HasSubstr("bad.h5: facts: " + std::string(message)));
  }
  EXPECT_THAT(refused(Json::array(), good.key(), {}), HasSubstr("bad.h5: facts: expected a JSON object, found array"));
  for (const auto& [buckets, message] : {std::pair{"[[32,32],[32]]", "expected [height, width], found [32]"},
                                         std::pair{"[[32,\"wide\"]]", "found [32,\"wide\"]"}, std::pair{"32", "found 32"},
                                         std::pair{"[[32", "not JSON: '[[32'"}})
    EXPECT_THAT(refused(good.to_json(), good.key(), {{"buckets", buckets}}), AllOf(HasSubstr("bad.h5: buckets: "), HasSubstr(message)));
  EXPECT_THAT(refused(good.to_json(), good.key(), {{"class_names", "{}"}, {"buckets", "[]"}}),
              HasSubstr("bad.h5: class_names: expected a list of names, found {}"));
}

}  // namespace
}  // namespace fewstep
