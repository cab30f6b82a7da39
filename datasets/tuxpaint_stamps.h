// The kind `tuxpaint_stamps`: the clip-art and photographs of Debian's package tuxpaint-stamps-default, 785 captioned
// PNG pictures of many sizes and aspect ratios: real multi-aspect data without a download beyond a package.
#pragma once
#include <memory>
#include <string>
#include <string_view>

#include "datasets/image_list.h"

namespace fewstep {

struct TuxpaintStampsConfig : DatasetConfig {
  std::string folder = "/usr/share/tuxpaint/stamps";
  ImageListOptions images;
  TuxpaintStampsConfig() { images.image_size = 64; }
  std::string_view kind() const override { return "tuxpaint_stamps"; }
  void describe(config::Visitor& v) override;
  // NAME.png with NAME.txt: the first line is the English caption, other languages follow as `xx.utf8=...`; without it
  // the caption is the name's words. Transparent ground becomes white. NAME_mirror and NAME_flip pictures, drawn for
  // mirroring by the paint program, are left out. The class is the top folder (animals, clothes, food ...), the split
  // a hash of the file name.
  std::unique_ptr<Dataset> build(Split split) const override;
};

}  // namespace fewstep
