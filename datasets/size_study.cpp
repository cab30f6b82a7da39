#include "datasets/size_study.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "src/base/error.h"
#include "src/base/hash.h"
#include "src/io/image.h"
#include "src/tensor/ops.h"

namespace fewstep {
namespace {

enum SizeProperty : uint64_t { kIsLarge, kSmallSize };

bool lacks_large(const SizeStudyConfig& config, int64_t label) {
  const auto& absent = config.classes_without_large;
  return std::find(absent.begin(), absent.end(), label) != absent.end();
}

class SizeStudy final : public FashionStudy {
 public:
  SizeStudy(const SizeStudyConfig& config, Split split) : FashionStudy(config.study, split), config_(config) {
    const int64_t full = config.study.image_size;
    sizes_.assign(ids_.size(), full);
    if (split == Split::train) {
      for (size_t i = 0; i < ids_.size(); ++i)
        sizes_[i] = draw_original_size(config, base_->label(static_cast<int64_t>(i)), property(ids_[i], kIsLarge),
                                       property(ids_[i], kSmallSize));
      large_ = std::count(sizes_.begin(), sizes_.end(), full);
      if (config.discard_small) std::erase_if(kept_, [&](int64_t i) { return sizes_[static_cast<size_t>(i)] < full; });
      if (kept_.empty()) fail<ConfigError>("data.kept_share is {}: no image of full size is left", config.kept_share);
      if (config.shuffle_sizes) told_ = permutation();
    }
    fingerprint_ = sha256_hex(
        fmt::format("fashion sizes 1 {} seed {} share {} small {} {} absent {} discard {} shuffle {}",
                    base_->fingerprint(), config.study.split_seed, config.kept_share, config.small_min,
                    config.small_max, config.classes_without_large, config.discard_small, config.shuffle_sizes));
  }

  Sample get(int64_t index, uint64_t seed, int64_t epoch) const override {
    Sample sample = base_->get(kept(index), seed, epoch);
    const int64_t size = size_of(index), full = config_.study.image_size;
    if (size < full)
      sample.image = io::resize(io::resize(sample.image, size, size), full, full).contiguous();  // bicubic, antialiased
    const int64_t told = told_.empty() ? size : size_of(told_[static_cast<size_t>(index)]);
    sample.micro = MicroConditioning{};
    sample.micro.original_height = sample.micro.original_width = told;
    sample.micro.target_height = sample.micro.target_width = full;
    return sample;
  }

  std::string description() const override {
    const int64_t full = config_.study.image_size;
    if (split_ != Split::train)
      return fmt::format("Fashion-MNIST sizes {}: {} photographs of {} pixels", name_of(split_), size(), full);
    const auto names = class_names();
    std::vector<std::string> absent;
    for (int64_t label : config_.classes_without_large) absent.push_back(names[static_cast<size_t>(label)]);
    return fmt::format(
        "Fashion-MNIST sizes train: {} photographs, {} of {} ({:.1f} %) had {} pixels (none of: {}), the others {} to "
        "{}{}{}",
        size(), large_, ids_.size(), 100.0 * static_cast<double>(large_) / static_cast<double>(ids_.size()), full,
        fmt::join(absent, ", "), config_.small_min, config_.small_max,
        config_.discard_small ? "; the small ones are discarded" : "",
        config_.shuffle_sizes ? "; sizes are told of other images (control)" : "");
  }
  std::string fingerprint() const override { return fingerprint_; }

 private:
  int64_t size_of(int64_t index) const { return sizes_[static_cast<size_t>(kept(index))]; }

  SizeStudyConfig config_;
  std::vector<int64_t> sizes_;  // original size, by index of the base
  std::vector<int64_t> told_;   // shuffle_sizes: whose size is told
  int64_t large_ = 0;
  std::string fingerprint_;
};

}  // namespace

double large_share(const SizeStudyConfig& config, int64_t label) {
  if (lacks_large(config, label)) return 0;
  std::vector<int64_t> present;
  for (int64_t c = 0; c < kFashionClasses; ++c)
    if (!lacks_large(config, c)) present.push_back(c);
  const auto n = static_cast<double>(present.size());
  const double mean = config.kept_share * static_cast<double>(kFashionClasses) / n;
  const double width = std::max(0.0, std::min(0.6, 0.9 * (1 / mean - 1)));
  const auto rank = static_cast<double>(std::find(present.begin(), present.end(), label) - present.begin());
  const double r = n > 1 ? 2 * rank / (n - 1) - 1 : 0;
  return std::min(1.0, mean * (1 + width * r));
}

int64_t draw_original_size(const SizeStudyConfig& config, int64_t label, double large, double small) {
  if (large < large_share(config, label)) return config.study.image_size;
  const double power = 0.5 + static_cast<double>(label) / static_cast<double>(kFashionClasses);
  const auto steps = static_cast<double>(config.small_max - config.small_min + 1);
  const auto step = static_cast<int64_t>(std::floor(steps * std::pow(small, power)));
  return std::min(config.small_max, config.small_min + step);
}

void SizeStudyConfig::describe(config::Visitor& v) {
  describe_fashion_study(v, study);
  v.field("kept_share", kept_share, "share of the training images whose original size is image_size",
          config::Range{0.001, 1});
  v.field("small_min", small_min, "smallest original size", config::Range{2, 256});
  v.field("small_max", small_max, "largest original size below image_size", config::Range{2, 256});
  v.field("classes_without_large", classes_without_large, "labels of which no training image is large",
          config::Range{0, static_cast<double>(kFashionClasses - 1)});
  v.field("discard_small", discard_small, "train on the large images only, as without size conditioning one would");
  v.field("shuffle_sizes", shuffle_sizes, "control: the sizes that are told are permuted among the training images");
  v.check(small_min <= small_max, "small_max", "small_max must not be below small_min");
  v.check(small_max < study.image_size, "small_max", "small_max must be below image_size");
  v.check(!(discard_small && shuffle_sizes), "shuffle_sizes",
          "of discard_small all sizes are equal: nothing to shuffle");
  std::vector<int64_t> distinct = classes_without_large;
  std::sort(distinct.begin(), distinct.end());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  const auto present = kFashionClasses - static_cast<int64_t>(distinct.size());
  v.check(distinct.size() == classes_without_large.size(), "classes_without_large", "a class is named twice");
  v.check(present > 0 && kept_share * static_cast<double>(kFashionClasses) <= static_cast<double>(present),
          "kept_share", "the classes that may have large images are too few for this share");
}

std::unique_ptr<Dataset> SizeStudyConfig::build(Split split) const { return std::make_unique<SizeStudy>(*this, split); }

}  // namespace fewstep
