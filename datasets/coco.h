// COCO captions (Lin et al. 2014; Chen et al. 2015): annotations/captions_*.json and a folder of images.
#pragma once
#include <memory>
#include <string>
#include <string_view>

#include "datasets/image_list.h"

namespace fewstep {

struct CocoConfig : DatasetConfig {
  std::string annotations, folder;
  ImageListOptions images;
  std::string_view kind() const override { return "coco"; }
  void describe(config::Visitor& v) override;
  std::unique_ptr<Dataset> build(Split split) const override;
};

}  // namespace fewstep
