// Writing a latent cache: threads decode ahead, one thread encodes and writes, bucket after bucket.
#include <ATen/Parallel.h>

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <latch>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "datasets/bucket_sampler.h"
#include "datasets/latent_cache.h"
#include "datasets/latent_cache_format.h"
#include "datasets/stored_samples.h"
#include "src/base/error.h"
#include "src/io/hdf5.h"
#include "src/tensor/ops.h"

namespace fewstep {
namespace {

namespace fs = std::filesystem;

// One sample in the file: where it comes from and where its rows go.
struct CachePlace {
  int64_t index = 0, bucket = 0, row = 0;
};
struct CachePlan {
  std::vector<std::vector<int64_t>> members;  // by bucket: indices of the source
  std::vector<CachePlace> samples;            // of those kept, in the source's order
};

CachePlan plan_cache(const Dataset& dataset, int64_t smallest) {
  CachePlan plan;
  const size_t buckets = std::max<size_t>(1, dataset.buckets().size());
  if (smallest > 0 && buckets > 1) {
    plan.members = group_by_bucket(dataset, smallest);
  } else {
    plan.members.resize(buckets);
    for (int64_t i = 0; i < dataset.size(); ++i)
      plan.members.at(static_cast<size_t>(dataset.bucket_of(i))).push_back(i);
  }
  for (size_t b = 0; b < plan.members.size(); ++b)
    for (size_t r = 0; r < plan.members[b].size(); ++r)
      plan.samples.push_back({plan.members[b][r], static_cast<int64_t>(b), static_cast<int64_t>(r)});
  std::sort(plan.samples.begin(), plan.samples.end(), [](const auto& a, const auto& b) { return a.index < b.index; });
  return plan;
}

// The samples of one encoder call: of one bucket, rows [first, first + size).
struct CacheJob {
  int64_t bucket = 0, first = 0, size = 0;
};
struct CacheJobResult {
  Batch batch;
  std::vector<Sample> samples;  // without images
};

// Jobs done by threads, at most `2 threads` ahead, handed out in order.
class OrderedJobs {
 public:
  using Work = std::function<CacheJobResult(const CacheJob&)>;
  OrderedJobs(const std::vector<CacheJob>& jobs, int64_t threads, Work work)
      : jobs_(jobs), work_(std::move(work)), slots_(static_cast<size_t>(2 * threads)) {
    const int caller = at::get_num_threads();
    std::latch ready(threads);
    for (int64_t t = 0; t < threads; ++t)
      threads_.emplace_back([this, &ready] {
        at::get_num_threads();   // as in the loader: ATen's default first, then
        at::set_num_threads(1);  // no OpenMP team of its own beside the encoder's
        ready.count_down();
        run();
      });
    ready.wait();
    at::set_num_threads(caller);
  }
  ~OrderedJobs() {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    can_work_.notify_all();
    threads_.clear();  // joins
  }
  CacheJobResult next() {
    std::unique_lock lock(mutex_);
    Slot& slot = slots_[taken_ % slots_.size()];
    can_take_.wait(lock, [&] { return slot.full; });
    Slot taken = std::exchange(slot, {});
    ++taken_;
    can_work_.notify_all();
    if (taken.error) std::rethrow_exception(taken.error);
    return std::move(taken.result);
  }

 private:
  struct Slot {
    CacheJobResult result = {};
    std::exception_ptr error = {};
    bool full = false;
  };
  void run() {
    for (;;) {
      std::unique_lock lock(mutex_);
      can_work_.wait(lock, [&] { return stopping_ || (issued_ < jobs_.size() && issued_ < taken_ + slots_.size()); });
      if (stopping_) return;
      const size_t job = issued_++;
      lock.unlock();
      Slot done;
      try {
        done.result = work_(jobs_[job]);
      } catch (...) {
        done.error = std::current_exception();
      }
      done.full = true;
      lock.lock();
      slots_[job % slots_.size()] = std::move(done);
      can_take_.notify_all();
    }
  }

  const std::vector<CacheJob>& jobs_;
  Work work_;
  std::mutex mutex_;
  std::condition_variable can_work_, can_take_;
  std::vector<Slot> slots_;
  size_t issued_ = 0, taken_ = 0;
  bool stopping_ = false;
  std::vector<std::jthread> threads_;
};

// Values in the file's type; NumericError names the sample that has none.
Tensor storable(const Tensor& values, bool half, const std::vector<Sample>& samples, std::string_view name) {
  const Tensor stored = values.detach().cpu().to(half ? at::kHalf : at::kFloat).contiguous();
  const Tensor finite = stored.isfinite().flatten(1).all(1);
  for (int64_t i = 0; i < finite.size(0); ++i)
    if (!finite[i].item<bool>())
      fail<NumericError>(
          "sample {}: the {} of its latents is not finite{}: nothing is cached. An autoencoder that overflows in "
          "float16 "
          "must run in float32",
          samples[static_cast<size_t>(i)].id, name, half ? " in float16 (--dtype float32 keeps large values)" : "");
  return stored;
}

class CacheWriter {
 public:
  CacheWriter(const Dataset& dataset, const fs::path& out, const CacheEncoders& encoders, const CacheOptions& options)
      : dataset_(dataset.strict()),  // on_error: skip would put another sample's latents beside this one's captions
        encoders_(encoders),
        options_(options),
        plan_(plan_cache(dataset, options.smallest_bucket)),
        file_(io::H5File::create(out)) {
    if (plan_.samples.empty()) fail<DataError>("the data set is empty: {}", dataset.description());
    const size_t n = static_cast<size_t>(dataset.size());
    ids_.resize(n), labels_.resize(n), aesthetic_.resize(n), attributes_.resize(n);
    sizes_ = dataset.buckets();
    sizes_.resize(plan_.members.size());  // without buckets: one size, that of the first image
  }

  CacheFacts write(const std::function<void(int64_t)>& progress) {
    const std::vector<CacheJob> jobs = all_jobs();
    OrderedJobs ahead(jobs, std::max<int64_t>(1, options_.threads), [&](const CacheJob& job) { return fetch(job); });
    int64_t done = 0;
    for (const CacheJob& job : jobs) {
      const CacheJobResult result = ahead.next();
      store(job, result);
      done += job.size;
      if (progress) progress(done);
    }
    write_tables();
    if (encoders_.texts) write_texts();
    const CacheFacts facts = describe_cache();
    file_.set_attribute("format", std::string(kLatentCacheFormat));
    file_.set_attribute("facts", facts.to_json().dump());
    file_.set_attribute("key", facts.key());
    file_.set_attribute("source", dataset_.description());
    if (const auto names = dataset_.class_names(); !names.empty())
      file_.set_attribute("class_names", Json(names).dump());
    Json sizes = Json::array();
    for (const BucketSize& size : sizes_) sizes.push_back({size.height, size.width});
    file_.set_attribute("buckets", sizes.dump());
    file_.commit();
    return facts;
  }

 private:
  std::vector<CacheJob> all_jobs() const {
    std::vector<CacheJob> jobs;
    for (size_t b = 0; b < plan_.members.size(); ++b) {
      const int64_t rows = static_cast<int64_t>(plan_.members[b].size()) * options_.variants;
      for (int64_t first = 0; first < rows; first += options_.batch)
        jobs.push_back({static_cast<int64_t>(b), first, std::min(options_.batch, rows - first)});
    }
    return jobs;
  }

  CacheJobResult fetch(const CacheJob& job) const {
    CacheJobResult result;
    const auto& members = plan_.members[static_cast<size_t>(job.bucket)];
    for (int64_t r = job.first; r < job.first + job.size; ++r) {
      const int64_t index = members[static_cast<size_t>(r / options_.variants)], variant = r % options_.variants;
      result.samples.push_back(
          dataset_.get_in(index, job.bucket, static_cast<uint64_t>(options_.seed), variant));  // variant k is epoch k's
    }
    if (!result.samples.front().image.defined())
      fail<ConfigError>("{}: it holds latents already: make a cache of the images' data set", dataset_.description());
    result.batch = collate(result.samples);
    for (Sample& sample : result.samples) {
      if (sample.micro.target_height == 0)  // as collate: an image that was not framed
        sample.micro = whole_image(sample.image.size(-2), sample.image.size(-1));
      sample.image = Tensor();
    }
    return result;
  }

  void store(const CacheJob& job, const CacheJobResult& result) {
    const CachedPosterior posterior = encoders_.images(result.batch.images);
    FEW_CHECK(posterior.mean.dim() == 4 && posterior.mean.size(0) == job.size &&
                  posterior.mean.sizes() == posterior.std.sizes(),
              "the encoder gives a mean of [{}] and a deviation of [{}] for {} images",
              c10::str(posterior.mean.sizes()), c10::str(posterior.std.sizes()), job.size);
    const Tensor mean = storable(posterior.mean, options_.half, result.samples, "mean"),
                 std = storable(posterior.std, options_.half, result.samples, "deviation");
    BucketSize& size = sizes_[static_cast<size_t>(job.bucket)];
    const BucketSize seen = {result.batch.images.size(2), result.batch.images.size(3)};
    if (size == BucketSize{}) size = seen;
    if (size != seen)
      fail<DataError>("sample {} is {}, but its bucket is {}", result.samples.front().id, bucket_text(seen),
                      bucket_text(size));
    if (job.first == 0) create_bucket(size, mean);
    file_.append(cache_dataset(size, "mean"), mean);
    file_.append(cache_dataset(size, "std"), std);
    Tensor micro = at::empty({job.size, kMicroColumns}, at::kLong);
    int64_t* to = micro.mutable_data_ptr<int64_t>();
    for (int64_t i = 0; i < job.size; ++i) {
      const Sample& sample = result.samples[static_cast<size_t>(i)];
      to = store_micro(sample.micro, to);
      if ((job.first + i) % options_.variants == 0) note(job, (job.first + i) / options_.variants, sample);
    }
    file_.append(cache_dataset(size, "micro"), micro);
  }

  void create_bucket(BucketSize size, const Tensor& mean) {
    const std::vector<int64_t> row = mean.sizes().slice(1).vec();
    if (file_.contains(cache_dataset(size, "mean")))
      fail<ConfigError>("two buckets of the data set are {}: a size may be listed once", bucket_text(size));
    // A record is read at a time, in random order: chunks hold as few as pay.
    const int64_t bytes = std::max<int64_t>(1, mean[0].numel() * static_cast<int64_t>(mean.element_size()));
    const int64_t chunk = std::max<int64_t>(1, (16 << 10) / bytes);
    for (const char* name : {"mean", "std"})
      file_.create_dataset(cache_dataset(size, name), mean.scalar_type(), {.row = row, .chunk_rows = chunk});
    file_.create_dataset(cache_dataset(size, "micro"), at::kLong, {.row = {kMicroColumns}});
  }

  // What all variants of a sample share.
  void note(const CacheJob& job, int64_t row, const Sample& sample) {
    const auto at = static_cast<size_t>(plan_.members[static_cast<size_t>(job.bucket)][static_cast<size_t>(row)]);
    ids_[at] = sample.id;
    labels_[at] = sample.label;
    aesthetic_[at] = sample.aesthetic;
    attributes_[at] = sample.attributes.empty() ? "" : attributes_text(sample);
  }

  void write_tables() {
    const auto n = static_cast<int64_t>(plan_.samples.size());
    std::map<std::string, Tensor> columns;
    for (const char* name : {"ids", "labels", "bucket", "row"}) columns[name] = at::empty({n}, at::kLong);
    const Tensor aesthetic = at::empty({n}, at::kDouble);
    std::vector<std::string> attributes;
    std::map<std::string, int64_t> known;
    std::vector<int64_t> captions_of = {0}, caption_ids;
    bool any = false;
    for (int64_t i = 0; i < n; ++i) {
      const CachePlace& place = plan_.samples[static_cast<size_t>(i)];
      const auto at = static_cast<size_t>(place.index);
      columns["ids"].mutable_data_ptr<int64_t>()[i] = ids_[at];
      columns["labels"].mutable_data_ptr<int64_t>()[i] = labels_[at];
      columns["bucket"].mutable_data_ptr<int64_t>()[i] = place.bucket;
      columns["row"].mutable_data_ptr<int64_t>()[i] = place.row;
      aesthetic.mutable_data_ptr<double>()[i] = aesthetic_[at];
      attributes.push_back(attributes_[at]);
      any = any || !attributes_[at].empty();
      for (const std::string& caption : dataset_.captions(place.index)) {
        const auto [found, fresh] = known.emplace(caption, static_cast<int64_t>(captions_.size()));
        if (fresh) captions_.push_back(caption);
        caption_ids.push_back(found->second);
      }
      captions_of.push_back(static_cast<int64_t>(caption_ids.size()));
    }
    for (const auto& [name, column] : columns) file_.write(name, column);
    file_.write("aesthetic", aesthetic);
    if (any) file_.write_strings("attributes", attributes);
    file_.write_strings("captions", captions_);
    file_.write("captions_of", at::tensor(captions_of, at::kLong));
    file_.write("caption_ids", at::tensor(caption_ids, at::kLong));
  }

  void write_texts() {
    std::vector<std::string> all = {""};  // row 0: what a dropped prompt becomes
    all.insert(all.end(), captions_.begin(), captions_.end());
    const auto append = [&](const char* name, const Tensor& rows, bool first) {
      const Tensor stored = rows.detach().cpu().to(at::kHalf).contiguous();
      if (!stored.isfinite().all().item<bool>())
        fail<NumericError>("text embeddings ({}) are not finite in float16", name);
      if (first) file_.create_dataset(name, at::kHalf, {.row = stored.sizes().slice(1).vec(), .chunk_rows = 1});
      file_.append(name, stored);
    };
    for (size_t begin = 0; begin < all.size(); begin += static_cast<size_t>(options_.batch)) {
      const size_t end = std::min(all.size(), begin + static_cast<size_t>(options_.batch));
      const CachedText text = encoders_.texts(
          {all.begin() + static_cast<std::ptrdiff_t>(begin), all.begin() + static_cast<std::ptrdiff_t>(end)});
      FEW_CHECK(text.context.dim() == 3 && text.context.size(0) == static_cast<int64_t>(end - begin),
                "the text encoder gives [{}] for {} captions", c10::str(text.context.sizes()), end - begin);
      append("context", text.context, begin == 0);
      if (text.pooled.defined()) append("pooled", text.pooled, begin == 0);
    }
  }

  CacheFacts describe_cache() const {
    CacheFacts facts;
    facts.source = dataset_.description();
    facts.source_fingerprint = dataset_.fingerprint();
    facts.split = name_of(options_.split);
    facts.framing = dataset_.conditioning_facts();
    facts.vae = options_.vae, facts.vae_name = options_.vae_name;
    facts.text = options_.text, facts.text_name = options_.text_name;
    facts.variants = options_.variants, facts.seed = options_.seed;
    facts.smallest_bucket = options_.smallest_bucket;
    facts.dtype = options_.half ? "float16" : "float32";
    return facts;
  }

  const Dataset& dataset_;
  const CacheEncoders& encoders_;
  const CacheOptions& options_;
  CachePlan plan_;
  io::H5File file_;
  std::vector<BucketSize> sizes_;
  std::vector<int64_t> ids_, labels_;  // by index of the source
  std::vector<double> aesthetic_;
  std::vector<std::string> attributes_, captions_;
};

}  // namespace

CacheFacts write_latent_cache(const Dataset& dataset, const fs::path& out, const CacheEncoders& encoders,
                              const CacheOptions& options, const std::function<void(int64_t)>& progress) {
  FEW_CHECK(encoders.images != nullptr && options.variants > 0 && options.batch > 0, "{} variants, batches of {}",
            options.variants, options.batch);
  return CacheWriter(dataset, out, encoders, options).write(progress);
}

}  // namespace fewstep
