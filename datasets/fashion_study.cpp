#include "datasets/fashion_study.h"

#include <numeric>

#include "src/base/error.h"
#include "src/base/philox.h"
#include "src/tensor/rng.h"

namespace fewstep {
namespace {

std::unique_ptr<FashionMnist> open_photographs(const FashionStudyOptions& options, Split split) {
  FashionMnistConfig config;
  config.folder = options.folder;
  config.image_size = options.image_size;
  config.heldout = options.heldout;
  config.holdout_pairs = false;  // a study of sizes or crops wants every class as it is
  auto opened = config.build(split);
  auto* photographs = dynamic_cast<FashionMnist*>(opened.release());
  FEW_CHECK(photographs != nullptr, "fashion_mnist is no FashionMnist");
  return std::unique_ptr<FashionMnist>(photographs);
}

}  // namespace

void describe_fashion_study(config::Visitor& v, FashionStudyOptions& o) {
  v.field("folder", o.folder, "folder with the four IDX files, plain or .gz (Debian: dataset-fashion-mnist)");
  v.field("image_size", o.image_size, "side of the images", config::Range{28, 256});
  v.field("heldout", o.heldout, "images cut from the end of the train file as the heldout split",
          config::Range{0, 60000});
  v.field("split_seed", o.split_seed, "keys what is drawn once for an image; another seed gives another study",
          config::kNonNegative);
}

FashionStudy::FashionStudy(const FashionStudyOptions& options, Split split)
    : options_(options), split_(split), base_(open_photographs(options, split)) {
  ids_.reserve(static_cast<size_t>(base_->size()));
  for (int64_t i = 0; i < base_->size(); ++i) ids_.push_back(base_->get(i, 0, 0).id);
  kept_.resize(ids_.size());
  std::iota(kept_.begin(), kept_.end(), int64_t{0});
}

double FashionStudy::property(int64_t id, uint64_t property) const {
  return philox_uniform(stream_key(static_cast<uint64_t>(options_.split_seed), Stream::augment, 0, id), property, 1);
}

std::vector<int64_t> FashionStudy::permutation() const {
  std::vector<int64_t> order(kept_.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  const uint64_t key =
      stream_key(static_cast<uint64_t>(options_.split_seed), Stream::mix, static_cast<int64_t>(split_));
  for (size_t i = order.size(); i > 1; --i) {  // Fisher and Yates, as the loader's
    const auto draw = static_cast<unsigned __int128>(philox_u64(key, i, 0)) * i;
    std::swap(order[i - 1], order[static_cast<size_t>(draw >> 64)]);
  }
  return order;
}

}  // namespace fewstep
