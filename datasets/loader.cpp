#include "datasets/loader.h"

#include <ATen/Parallel.h>

#include <chrono>
#include <condition_variable>
#include <exception>
#include <latch>
#include <mutex>
#include <numeric>
#include <optional>
#include <thread>

#include "datasets/permutation.h"
#include "src/base/error.h"
#include "src/base/philox.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"

namespace fewstep {

// --- the stream ---

std::shared_ptr<const std::vector<int64_t>> permutation(int64_t size, uint64_t seed, int64_t epoch, int64_t id,
                                                        bool shuffle) {
  auto order = std::make_shared<std::vector<int64_t>>(static_cast<size_t>(size));
  std::iota(order->begin(), order->end(), int64_t{0});
  const uint64_t key = stream_key(seed, Stream::data, epoch, id);
  for (size_t i = shuffle ? order->size() : 0; i > 1; --i) {
    // 64 x 64 -> high 64 bits: uniform on [0, i) up to i / 2^64.
    const auto draw = static_cast<unsigned __int128>(philox_u64(key, i, 0)) * i;
    std::swap((*order)[i - 1], (*order)[static_cast<size_t>(draw >> 64)]);
  }
  return order;
}

struct StreamSampler::Cache {
  struct Epoch {
    int64_t epoch = -1;
    std::shared_ptr<const std::vector<int64_t>> permutation;
  };
  std::mutex mutex;
  Epoch last[2];  // by epoch % 2: workers at an epoch's end need this one and the next
};

StreamSampler::StreamSampler(int64_t dataset_size, uint64_t seed, bool shuffle)
    : size_(dataset_size), seed_(seed), shuffle_(shuffle), cache_(std::make_shared<Cache>()) {
  FEW_CHECK(dataset_size > 0, "a stream over {} samples", dataset_size);
}

SamplePlace StreamSampler::at(int64_t position) const {
  FEW_CHECK(position >= 0, "stream position {}", position);
  const int64_t epoch = position / size_, offset = position % size_;
  if (!shuffle_) return {offset, epoch, 0};
  std::lock_guard lock(cache_->mutex);
  Cache::Epoch& slot = cache_->last[epoch % 2];
  if (slot.epoch != epoch) slot = {epoch, permutation(size_, seed_, epoch)};
  return {(*slot.permutation)[static_cast<size_t>(offset)], epoch, 0};
}

// --- the loader ---

struct Loader::Impl {
  Impl(const Dataset& data, const LoaderOptions& o)
      : dataset(data),
        options(o),
        stream(data.size(), o.seed, o.shuffle),
        consumed(o.first_step),
        issued(o.first_step) {
    FEW_CHECK(o.world_size > 0 && o.rank >= 0 && o.rank < o.world_size, "rank {} of {}", o.rank, o.world_size);
    FEW_CHECK(o.batch_size > 0 && o.batch_size % o.world_size == 0, "a batch of {} on {} ranks", o.batch_size,
              o.world_size);
    FEW_CHECK(o.workers >= 0 && o.first_step >= 0, "{} workers from step {}", o.workers, o.first_step);
    if (data.buckets().size() > 1)
      buckets.emplace(group_by_bucket(data, o.batch_size), o.batch_size, o.seed, o.shuffle);
    slots.resize(static_cast<size_t>(std::max<int64_t>(1, o.prefetch)));
    if (o.workers > 0) start();
  }
  ~Impl() {
    {
      std::lock_guard lock(mutex);
      stopping = true;
    }
    can_work.notify_all();
    workers.clear();  // joins
  }

  void start() {
    const int threads = at::get_num_threads();
    std::latch ready(options.workers);
    for (int64_t w = 0; w < options.workers; ++w)
      workers.emplace_back([this, &ready] {
        at::get_num_threads();   // ATen gives a new thread the default at its first use: now, not after the next line
        at::set_num_threads(1);  // decoding runs beside the trainer: no OpenMP team of its own
        ready.count_down();
        work();
      });
    ready.wait();
    // ATen keeps the last number set as the default of threads to come: put the trainer's back.
    at::set_num_threads(threads);
  }

  Batch make(int64_t step) const {
    std::vector<Sample> samples;
    std::vector<int64_t> epochs;
    samples.reserve(static_cast<size_t>(options.batch_size / options.world_size));
    for (int64_t i = options.rank; i < options.batch_size; i += options.world_size) {
      const SamplePlace place = buckets ? buckets->at(step, i) : stream.at(step * options.batch_size + i);
      samples.push_back(buckets ? dataset.get_in(place.index, place.bucket, options.seed, place.epoch)
                                : dataset.get(place.index, options.seed, place.epoch));
      epochs.push_back(place.epoch);
    }
    return collate(samples, epochs);
  }

  // Takes the next step while it is within the prefetch window; results wait in the ring until their turn.
  void work() {
    const int64_t window = static_cast<int64_t>(slots.size());
    for (;;) {
      std::unique_lock lock(mutex);
      can_work.wait(lock, [&] { return stopping || issued < consumed + window; });
      if (stopping) return;
      const int64_t step = issued++;
      lock.unlock();
      Slot result;
      try {
        result.batch = make(step);
      } catch (...) {
        result.error = std::current_exception();
      }
      lock.lock();
      slots[static_cast<size_t>(step % window)] = std::move(result);
      can_take.notify_all();
    }
  }

  Batch next() {
    if (failure) std::rethrow_exception(failure);
    if (options.workers == 0) {
      Batch batch = make(consumed);  // an exception leaves the place: the next call says the same
      ++consumed;
      return batch;
    }
    std::unique_lock lock(mutex);
    Slot& slot = slots[static_cast<size_t>(consumed % static_cast<int64_t>(slots.size()))];
    can_take.wait(lock, [&] { return slot.batch || slot.error; });
    const Slot taken = std::exchange(slot, {});
    if (taken.error) {  // every later call says the same
      failure = taken.error;
      std::rethrow_exception(failure);
    }
    ++consumed;
    can_work.notify_one();
    return *taken.batch;
  }

  struct Slot {
    std::optional<Batch> batch;
    std::exception_ptr error;
  };
  const Dataset& dataset;
  const LoaderOptions options;
  const StreamSampler stream;
  std::optional<BucketSampler> buckets;  // instead of `stream` where there are several
  std::mutex mutex;
  std::condition_variable can_work, can_take;
  std::vector<Slot> slots;   // ring: step s waits in slot s % size
  int64_t consumed, issued;  // next step to hand out; next step to begin
  bool stopping = false;
  double waited = 0;
  std::exception_ptr failure;
  std::vector<std::jthread> workers;  // last: joined before anything they use goes
};

Loader::Loader(const Dataset& dataset, const LoaderOptions& options) {
  if (dataset.size() == 0) fail<DataError>("the data set is empty: {}", dataset.description());
  impl_ = std::make_unique<Impl>(dataset, options);
}
Loader::~Loader() = default;

Batch Loader::next() {
  const auto begin = std::chrono::steady_clock::now();
  Batch batch = impl_->next();
  impl_->waited += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return batch;
}
double Loader::wait_seconds() const { return impl_->waited; }
int64_t Loader::epoch_of(int64_t step) const {
  if (impl_->buckets) return impl_->buckets->epoch_of(step);
  return step * impl_->options.batch_size / impl_->dataset.size();
}

Batch load_range(const Dataset& dataset, int64_t begin, int64_t end, uint64_t seed) {
  if (begin < 0 || begin >= end || end > dataset.size())
    fail<DataError>("samples [{}, {}) of a data set of {}: {}", begin, end, dataset.size(), dataset.description());
  std::vector<int64_t> indices(static_cast<size_t>(end - begin));
  std::iota(indices.begin(), indices.end(), begin);
  return load_indices(dataset, indices, seed);
}

Batch load_indices(const Dataset& dataset, std::span<const int64_t> indices, uint64_t seed) {
  std::vector<Sample> samples;
  samples.reserve(indices.size());
  for (int64_t i : indices) samples.push_back(dataset.get(i, seed, 0));
  return collate(samples);
}

std::vector<std::vector<int64_t>> validation_batches(const Dataset& dataset, int64_t count, int64_t micro, int64_t ranks) {
  FEW_CHECK(micro > 0 && ranks > 0, "validation in parts of {} on {} ranks", micro, ranks);
  std::vector<std::vector<int64_t>> members(std::max<size_t>(1, dataset.buckets().size()));
  for (int64_t i = 0; i < std::min(count, dataset.size()); ++i)
    members.at(static_cast<size_t>(dataset.bucket_of(i))).push_back(i);
  std::vector<std::vector<int64_t>> batches;
  for (const std::vector<int64_t>& bucket : members) {
    const int64_t whole = static_cast<int64_t>(bucket.size()) / ranks * ranks;
    for (int64_t first = 0; first < whole; first += micro * ranks)
      batches.emplace_back(bucket.begin() + first, bucket.begin() + std::min(whole, first + micro * ranks));
  }
  return batches;
}

}  // namespace fewstep
