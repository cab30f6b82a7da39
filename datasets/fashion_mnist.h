// Fashion-MNIST (Xiao et al. 2017): 60,000 + 10,000 photographs of clothing, 28 x 28 grey; Debian's
// dataset-fashion-mnist.
#pragma once
#include <memory>
#include <string>
#include <string_view>

#include "datasets/dataset.h"
#include "datasets/fashion_attributes.h"

namespace fewstep {

struct FashionMnistConfig : DatasetConfig {
  std::string folder = "/usr/share/datasets/fashion-mnist";
  int64_t image_size = 32;
  int64_t heldout = 9000;
  bool holdout_pairs = true;
  std::string_view kind() const override { return "fashion_mnist"; }
  void describe(config::Visitor& v) override;
  std::unique_ptr<Dataset> build(Split split) const override;
};

// Evaluation finds it by dynamic_cast: what captions were made of.
class FashionMnist : public Dataset {
 public:
  virtual const AttributeThresholds& thresholds() const = 0;
  virtual Attributes attributes(int64_t index) const = 0;
  virtual int64_t label(int64_t index) const = 0;
};

}  // namespace fewstep
