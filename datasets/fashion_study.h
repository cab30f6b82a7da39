// What the two conditioning studies share: Fashion-MNIST whose photographs were given a history (a size they once had,
// a canvas they were cut from), described by the numbers of micro-conditioning.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "datasets/fashion_mnist.h"

namespace fewstep {

struct FashionStudyOptions {
  std::string folder = FashionMnistConfig().folder;
  int64_t image_size = 32;
  int64_t heldout = 9000;
  int64_t split_seed = 0;  // keys every property of an image, with the image's id
};
void describe_fashion_study(config::Visitor& v, FashionStudyOptions& options);

// A split of Fashion-MNIST, with nothing held out from the train split, whose images are changed by the subclass.
// Labels, attributes and captions are those of the photographs.
class FashionStudy : public FashionMnist {
 public:
  FashionStudy(const FashionStudyOptions& options, Split split);
  int64_t size() const override { return static_cast<int64_t>(kept_.size()); }
  const AttributeThresholds& thresholds() const override { return base_->thresholds(); }
  Attributes attributes(int64_t index) const override { return base_->attributes(kept(index)); }
  int64_t label(int64_t index) const override { return base_->label(kept(index)); }
  std::vector<std::string> captions(int64_t index) const override { return base_->captions(kept(index)); }
  std::vector<std::string> class_names() const override { return base_->class_names(); }

 protected:
  int64_t kept(int64_t index) const { return kept_.at(static_cast<size_t>(index)); }  // -> index of the base
  int64_t id(int64_t index) const { return ids_[static_cast<size_t>(kept(index))]; }
  // Uniform in [0, 1): a property of the image that no epoch changes. `property` tells the draws of one image apart.
  double property(int64_t id, uint64_t property) const;
  // Place of the image whose numbers image `index` is given where a control permutes them: one permutation of the
  // split, keyed by split_seed.
  std::vector<int64_t> permutation() const;

  FashionStudyOptions options_;
  Split split_;
  std::unique_ptr<FashionMnist> base_;
  std::vector<int64_t> kept_;  // subclasses may leave some out
  std::vector<int64_t> ids_;   // of the base, by its index
};

}  // namespace fewstep
