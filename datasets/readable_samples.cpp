#include "datasets/readable_samples.h"

#include <algorithm>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>

#include "src/base/error.h"
#include "src/base/log.h"
#include "src/base/philox.h"
#include "src/tensor/rng.h"

namespace fewstep {
namespace {

constexpr config::Choice kOnErrorChoices[] = {{"fail", 0}, {"skip", 1}};
constexpr size_t kNamedInLog = 5;
constexpr uint64_t kReplacementDraws = 32;  // with 1 % broken, a chance of 1e-64 that all of them are

class ReadableSamples final : public Dataset {
 public:
  ReadableSamples(std::unique_ptr<Dataset> data, double max_broken) : data_(std::move(data)), max_broken_(max_broken) {
    members_.resize(std::max<size_t>(1, data_->buckets().size()));
    for (int64_t i = 0; i < data_->size(); ++i) members_.at(static_cast<size_t>(data_->bucket_of(i))).push_back(i);
  }

  int64_t size() const override { return data_->size(); }
  Sample get(int64_t index, uint64_t seed, int64_t epoch) const override {
    return get_in(index, data_->bucket_of(index), seed, epoch);
  }
  Sample get_in(int64_t index, int64_t bucket, uint64_t seed, int64_t epoch) const override {
    std::string problem;
    try {
      return data_->get_in(index, bucket, seed, epoch);
    } catch (const DataError& e) {
      problem = e.what();
    }
    note_broken(index, problem);
    // Among those of the sample's own bucket, also where that one is merged into another.
    const std::vector<int64_t>& others = members_[static_cast<size_t>(data_->bucket_of(index))];
    const uint64_t key = stream_key(seed, Stream::data, epoch, -2 - index);  // apart from every permutation's key
    for (uint64_t draw = 0; draw < kReplacementDraws; ++draw) {
      const auto product = static_cast<unsigned __int128>(philox_u64(key, draw, 0)) * others.size();
      const int64_t other = others[static_cast<size_t>(product >> 64)];
      if (other == index) continue;
      try {
        return data_->get_in(other, bucket, seed, epoch);
      } catch (const DataError& e) {
        note_broken(other, e.what());
      }
    }
    fail<DataError>("{}; and no other of the {} samples of its bucket could be read in {} draws", problem, others.size(),
                    kReplacementDraws);
  }

  bool can_reframe() const override { return data_->can_reframe(); }
  std::vector<BucketSize> buckets() const override { return data_->buckets(); }
  int64_t bucket_of(int64_t index) const override { return data_->bucket_of(index); }
  SmallBuckets small_buckets() const override { return data_->small_buckets(); }
  Json conditioning_facts() const override { return data_->conditioning_facts(); }
  const Dataset& strict() const override { return *data_; }
  std::vector<std::string> captions(int64_t index) const override { return data_->captions(index); }
  std::vector<std::string> class_names() const override { return data_->class_names(); }
  std::filesystem::path image_file(int64_t index) const override { return data_->image_file(index); }
  std::string description() const override { return data_->description(); }
  std::string fingerprint() const override { return data_->fingerprint(); }

 private:
  void note_broken(int64_t index, const std::string& problem) const {
    const std::lock_guard lock(mutex_);
    if (!broken_.insert(index).second) return;
    const size_t count = broken_.size();
    if (count <= kNamedInLog)
      log::warn("{}: another sample takes its place{}", problem, count == kNamedInLog ? "; further ones are only counted" : "");
    if (static_cast<double>(count) > max_broken_ * static_cast<double>(size()))
      fail<DataError>("{}: {} of {} samples could not be read, more than data.max_broken {:g} allows; the last: {} (see all with "
                      "`fewstep data verify`)",
                      description(), count, size(), max_broken_, problem);
  }

  std::unique_ptr<Dataset> data_;
  double max_broken_;
  std::vector<std::vector<int64_t>> members_;  // by bucket
  mutable std::mutex mutex_;
  mutable std::set<int64_t> broken_;
};

}  // namespace

void describe_readable(config::Visitor& v, ReadableConfig& c) {
  v.field("on_error", c.on_error, "a sample that cannot be read: fail, or skip: another one of its bucket takes its place",
          kOnErrorChoices);
  v.field("max_broken", c.max_broken, "with skip: more than this share of unreadable samples is an error", config::kUnit);
}

std::unique_ptr<Dataset> readable_samples(std::unique_ptr<Dataset> data, const ReadableConfig& config) {
  if (config.on_error == OnError::fail) return data;
  return std::make_unique<ReadableSamples>(std::move(data), config.max_broken);
}

}  // namespace fewstep
