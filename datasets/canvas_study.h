// The kind `fashion_mnist_canvas`: crop conditioning in miniature (SDXL, arXiv 2307.01952, section 2.2, algorithm 1).
// Every garment is scaled so that it fills a square of S = image_size pixels up to a margin. A share of the images are
// square canvases that show it whole; the others are canvases of 2:1 or 1:2 (S x 2S, 2S x S) of which an S x S crop is
// seen, and the garment lies up to `spread` S beside the crop: it is mostly cut. The six numbers are those of
// algorithm 1: the canvas's size, the crop's place in it, S x S.
// The offset c of the crop is uniform in 0 ... S by the rule every data set crops with (framing.h), and the garment's
// square begins at a place uniform in [c - spread S, c + spread S] within the canvas. So its law given c is the same
// for a training image and for one of `fixed_left` / `fixed_top` = c, which show what real crops at c look like.
#pragma once
#include <memory>
#include <string_view>

#include "datasets/fashion_study.h"

namespace fewstep {

struct CanvasStudyConfig : DatasetConfig {
  FashionStudyOptions study;
  double wide_share = 0.5, spread = 0.5;
  int64_t margin = 2;                       // pixels of ground around a whole garment
  bool shuffle_crops = false;               // control: the six numbers are those of another image
  int64_t fixed_left = -1, fixed_top = -1;  // not negative: every image is a crop at that offset
  std::string_view kind() const override { return "fashion_mnist_canvas"; }
  void describe(config::Visitor& v) override;
  std::unique_ptr<Dataset> build(Split split) const override;
};

}  // namespace fewstep
