#include "datasets/latent_cache.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "datasets/latent_cache_format.h"
#include "datasets/stored_samples.h"
#include "src/base/error.h"
#include "src/base/hash.h"
#include "src/base/json.h"
#include "src/io/hdf5.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"

namespace fewstep {
namespace {

namespace fs = std::filesystem;

std::vector<int64_t> cache_numbers(const io::H5File& file, const std::string& name) {
  const Tensor t = file.read(name);
  if (t.scalar_type() != at::kLong || t.dim() != 1)
    fail<DataError>("{}: '{}' must be int64 [N]", file.path().string(), name);
  return {t.const_data_ptr<int64_t>(), t.const_data_ptr<int64_t>() + t.numel()};
}

std::string first_16(std::string_view hash) { return std::string(hash.substr(0, 16)); }

bool has_cache_format(const io::H5File& file) {
  return file.has_attribute("format") && file.attribute_string("format") == kLatentCacheFormat;
}

// One bucket of the file.
struct CachedBucket {
  BucketSize size = {};
  int64_t rows = 0;                 // samples times variants
  std::vector<int64_t> shape = {};  // {C, h, w} of a latent
  Tensor micro = {};                // int64 [rows, 7]
  Tensor mean = {}, std = {};       // [rows, C, h, w] where the file is kept in memory
};

class LatentCacheImpl final : public LatentCache {
 public:
  LatentCacheImpl(const fs::path& path, bool in_memory, SmallBuckets small_buckets)
      : file_(io::H5File::open(path)), path_(path), small_buckets_(small_buckets) {
    const std::string place = path.string();
    if (!has_cache_format(file_))
      fail<DataError>("{}: not a latent cache ('format' is not '{}'; fewstep data cache makes one)", place,
                      kLatentCacheFormat);
    facts_ = CacheFacts::from_json(stored_json(file_.attribute_string("facts"), place + ": facts"), place + ": facts");
    if (const std::string key = file_.attribute_string("key"); facts_.key() != key)
      fail<DataError>("{}: its key is {}, but that of its facts is {}: the file was changed; make it anew with `{}`",
                      place, first_16(key), first_16(facts_.key()), facts_.command(path));
    read_tables();
    read_buckets(in_memory);
    read_captions(in_memory);
  }

  int64_t size() const override { return static_cast<int64_t>(ids_.size()); }

  Sample get(int64_t index, uint64_t seed, int64_t epoch) const override {
    const size_t i = checked(index);
    const CachedBucket& bucket = buckets_[static_cast<size_t>(bucket_[i])];
    Sample sample;
    sample.id = ids_[i];
    const int64_t row = row_[i] * facts_.variants + variant_of(sample.id, seed, epoch);
    sample.latent_mean = record(bucket, bucket.mean, "mean", row);
    sample.latent_std = record(bucket, bucket.std, "std", row);
    sample.micro = stored_micro(bucket.micro.const_data_ptr<int64_t>() + row * kMicroColumns);
    sample.label = labels_[i];
    sample.aesthetic = aesthetic_[i];
    if (!attributes_.empty())
      sample.attributes = stored_attributes(attributes_[i], fmt::format("{}: attributes of sample {}", path_.string(), i));
    if (const int64_t count = captions_of_[i + 1] - captions_of_[i]; count > 0) {
      const int64_t caption =
          caption_ids_[static_cast<size_t>(captions_of_[i] + choose_caption(count, seed, epoch, sample.id))];
      sample.caption = captions_[static_cast<size_t>(caption)];
      set_text(sample, caption + 1);
    } else {
      set_text(sample, 0);
    }
    return sample;
  }

  std::vector<std::string> captions(int64_t index) const override {
    const size_t i = checked(index);
    std::vector<std::string> all;
    for (int64_t k = captions_of_[i]; k < captions_of_[i + 1]; ++k)
      all.push_back(captions_[static_cast<size_t>(caption_ids_[static_cast<size_t>(k)])]);
    return all;
  }
  std::vector<std::string> class_names() const override { return class_names_; }
  std::vector<BucketSize> buckets() const override {
    std::vector<BucketSize> sizes;
    for (const CachedBucket& bucket : buckets_) sizes.push_back(bucket.size);
    return sizes;
  }
  int64_t bucket_of(int64_t index) const override { return bucket_[checked(index)]; }
  SmallBuckets small_buckets() const override { return small_buckets_; }
  Json conditioning_facts() const override { return facts_.framing; }
  std::string description() const override {
    return fmt::format("latent cache {}: {} samples, {} variant{} ({}{}), of {}", path_.string(), size(),
                       facts_.variants, facts_.variants == 1 ? "" : "s", facts_.dtype, has_texts() ? ", texts" : "",
                       facts_.source);
  }
  std::string fingerprint() const override { return facts_.key(); }

  const CacheFacts& facts() const override { return facts_; }
  const fs::path& path() const override { return path_; }
  std::vector<int64_t> latent_shape(int64_t bucket) const override {
    return buckets_.at(static_cast<size_t>(bucket)).shape;
  }
  Tensor null_context() const override { return has_texts() ? text_row("context", context_, 0) : Tensor(); }
  Tensor null_pooled() const override { return has_pooled_ ? text_row("pooled", pooled_, 0) : Tensor(); }

 private:
  size_t checked(int64_t index) const {
    FEW_CHECK(index >= 0 && index < size(), "{}: sample {} of {}", path_.string(), index, size());
    return static_cast<size_t>(index);
  }
  bool has_texts() const { return has_context_; }

  // Every K epochs show each of the K variants once, from one that (seed, id) chooses.
  int64_t variant_of(int64_t id, uint64_t seed, int64_t epoch) const {
    const uint64_t first = stream_key(seed, Stream::augment, -1, id) >> 32;
    return static_cast<int64_t>((first + static_cast<uint64_t>(epoch)) % static_cast<uint64_t>(facts_.variants));
  }

  Tensor record(const CachedBucket& bucket, const Tensor& kept, const char* name,
                int64_t row) const {  // float32 [C, h, w]
    const Tensor one = kept.defined() ? kept[row] : file_.read_rows(cache_dataset(bucket.size, name), row, row + 1)[0];
    return one.to(at::kFloat).contiguous();
  }
  Tensor text_row(const char* name, const Tensor& kept, int64_t row) const {
    return (kept.defined() ? kept[row] : file_.read_rows(name, row, row + 1)[0]).to(at::kFloat).contiguous();
  }
  void set_text(Sample& sample, int64_t row) const {
    if (has_context_) sample.context = text_row("context", context_, row);
    if (has_pooled_) sample.pooled = text_row("pooled", pooled_, row);
  }

  void read_tables() {
    ids_ = cache_numbers(file_, "ids");
    labels_ = cache_numbers(file_, "labels");
    bucket_ = cache_numbers(file_, "bucket");
    row_ = cache_numbers(file_, "row");
    const Tensor scores = file_.read("aesthetic").to(at::kDouble).contiguous();
    aesthetic_.assign(scores.const_data_ptr<double>(), scores.const_data_ptr<double>() + scores.numel());
    if (file_.contains("attributes")) attributes_ = file_.read_strings("attributes");
    const size_t n = ids_.size();
    if (labels_.size() != n || bucket_.size() != n || row_.size() != n || aesthetic_.size() != n ||
        (!attributes_.empty() && attributes_.size() != n))
      fail<DataError>("{}: the tables of its samples have different lengths", path_.string());
    if (file_.has_attribute("class_names"))
      class_names_ = stored_names(file_.attribute_string("class_names"), path_.string() + ": class_names");
  }

  void read_buckets(bool in_memory) {
    const std::string place = path_.string() + ": buckets";
    for (const Json& size : stored_json(file_.attribute_string("buckets"), place)) {
      if (!size.is_array() || size.size() != 2 || !size[0].is_number_integer() || !size[1].is_number_integer())
        fail<DataError>("{}: expected [height, width], found {}", place, size.dump());
      buckets_.push_back({.size = {size[0].get<int64_t>(), size[1].get<int64_t>()}});
    }
    for (CachedBucket& bucket : buckets_) {
      if (!file_.contains("bucket_" + bucket_text(bucket.size))) continue;  // no image went there
      const std::string mean = cache_dataset(bucket.size, "mean"), std = cache_dataset(bucket.size, "std");
      const std::vector<int64_t> shape = file_.shape(mean);
      bucket.micro = file_.read(cache_dataset(bucket.size, "micro"));
      bucket.rows = shape.at(0);
      if (shape.size() != 4 || file_.shape(std) != shape || bucket.micro.dim() != 2 ||
          bucket.micro.size(0) != shape[0] || bucket.micro.size(1) != kMicroColumns ||
          bucket.micro.scalar_type() != at::kLong)
        fail<DataError>("{}: mean, std and micro of bucket {} do not belong together", path_.string(),
                        bucket_text(bucket.size));
      bucket.shape.assign(shape.begin() + 1, shape.end());
      if (in_memory) bucket.mean = file_.read(mean), bucket.std = file_.read(std);
    }
    for (size_t i = 0; i < ids_.size(); ++i) {
      const bool known = bucket_[i] >= 0 && bucket_[i] < static_cast<int64_t>(buckets_.size());
      if (!known || row_[i] < 0 || (row_[i] + 1) * facts_.variants > buckets_[static_cast<size_t>(bucket_[i])].rows)
        fail<DataError>("{}: sample {} lies in row {} of bucket {}, which is not there", path_.string(), ids_[i],
                        row_[i], bucket_[i]);
    }
  }

  void read_captions(bool in_memory) {
    captions_ = file_.read_strings("captions");
    captions_of_ = cache_numbers(file_, "captions_of");
    caption_ids_ = cache_numbers(file_, "caption_ids");
    const auto beyond = [&](int64_t id) { return id < 0 || id >= static_cast<int64_t>(captions_.size()); };
    if (captions_of_.size() != ids_.size() + 1 || captions_of_.front() != 0 ||
        captions_of_.back() != static_cast<int64_t>(caption_ids_.size()) ||
        !std::is_sorted(captions_of_.begin(), captions_of_.end()) ||
        std::any_of(caption_ids_.begin(), caption_ids_.end(), beyond))
      fail<DataError>("{}: the captions do not fit its {} samples", path_.string(), ids_.size());
    has_context_ = file_.contains("context");
    has_pooled_ = has_context_ && file_.contains("pooled");
    for (const char* name : {"context", "pooled"})
      if (file_.contains(name) && file_.shape(name).at(0) != static_cast<int64_t>(captions_.size()) + 1)
        fail<DataError>("{}: {} embeddings in '{}' for {} captions and the empty one", path_.string(),
                        file_.shape(name).at(0), name, captions_.size());
    if (in_memory && has_context_) context_ = file_.read("context");
    if (in_memory && has_pooled_) pooled_ = file_.read("pooled");
  }

  io::H5File file_;
  fs::path path_;
  SmallBuckets small_buckets_;
  CacheFacts facts_;
  std::vector<int64_t> ids_, labels_, bucket_, row_;
  std::vector<double> aesthetic_;
  std::vector<std::string> attributes_, class_names_, captions_;
  std::vector<int64_t> captions_of_, caption_ids_;
  std::vector<CachedBucket> buckets_;
  bool has_context_ = false, has_pooled_ = false;
  Tensor context_, pooled_;  // [M + 1, ...] where the file is kept in memory
};

// Kinds a cache can be made of: without this one, which would describe itself without end.
const std::vector<DatasetKind>& cacheable_kinds() {
  static const std::vector<DatasetKind> kinds = [] {
    std::vector<DatasetKind> all;
    for (const DatasetKind& kind : dataset_kinds())
      if (kind.name != LatentCacheConfig().kind()) all.push_back(kind);
    return all;
  }();
  return kinds;
}

// Refuses a cache that was made of another source, or of the same one framed differently.
void check_source(const LatentCache& cache, const Dataset& source, std::string_view split) {
  const CacheFacts& facts = cache.facts();
  const auto stale = [&](const std::string& what) {
    fail<DataError>("{}: {}: make it anew with `{}`", cache.path().string(), what, facts.command(cache.path()));
  };
  if (facts.split != split) stale(fmt::format("it holds the {} split, and {} is asked for", facts.split, split));
  if (const Json framing = source.conditioning_facts(); facts.framing != framing)
    stale(fmt::format("its images were framed as {}, and data.source frames them as {}", facts.framing.dump(),
                      framing.dump()));
  if (const std::string now = source.fingerprint(); facts.source_fingerprint != now)
    stale(fmt::format("it was made of data with fingerprint {} ({}), and data.source has {} ({})",
                      first_16(facts.source_fingerprint), facts.source, first_16(now), source.description()));
}

}  // namespace

bool is_latent_cache(const fs::path& path) { return has_cache_format(io::H5File::open(path)); }

void LatentCache::check(std::string_view vae_identity, std::string_view text_identity) const {
  const auto stale = [&](std::string_view part, const std::string& cached, const std::string& name,
                         std::string_view now) {
    CacheFacts wanted = facts();  // the command for the model at hand, not for the one that made this file
    (part == "latents" ? wanted.vae_name : wanted.text_name) = "MODEL_DIR";
    if (now.empty()) wanted.text.clear();
    fail<DataError>("{}: its {} come from {} ({}), and the model's {} is {}: make it anew with `{}`", path().string(),
                    part, cached, name.empty() ? "unnamed" : name, part == "latents" ? "autoencoder" : "text encoder",
                    now.empty() ? "none" : now, wanted.command(path()));
  };
  if (facts().vae != vae_identity) stale("latents", facts().vae, facts().vae_name, vae_identity);
  if (!facts().text.empty() && facts().text != text_identity)
    stale("texts", facts().text, facts().text_name, text_identity);
}

void LatentCacheConfig::describe(config::Visitor& v) {
  v.field("train", train, "file of the train split, made by `fewstep data cache`");
  v.field("heldout", heldout, "file of the heldout split");
  v.field("test", test, "file of the test split");
  v.field("in_memory", in_memory, "read the file once, at the start: for many small images");
  constexpr static config::Choice kPolicies[] = {{"error", static_cast<int>(SmallBuckets::error)},
                                                 {"drop", static_cast<int>(SmallBuckets::drop)}};
  v.field("small_buckets", small_buckets, "what happens to a bucket with fewer samples than a global batch", kPolicies);
  v.field("source", source, "the data set the files were made of: given, a cache of other data or framing is refused",
          cacheable_kinds());
}

std::unique_ptr<Dataset> LatentCacheConfig::build(Split split) const {
  const std::string& path = file_of_split(*this, split, "fewstep data cache");
  auto cache = std::make_unique<LatentCacheImpl>(path, in_memory, small_buckets);
  if (source) check_source(*cache, *source->build(split), name_of(split));
  return cache;
}

}  // namespace fewstep
