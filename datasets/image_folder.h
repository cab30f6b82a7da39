// A folder of images with captions: NAME.txt beside NAME.png (a caption a line), or metadata.jsonl with
// {"file_name": ..., "text" | "caption": ...} a line, as Hugging Face's imagefolder has it; "aesthetic" (a number) and
// "label" (a class) may stand there too.
#pragma once
#include <memory>
#include <string>
#include <string_view>

#include "datasets/image_list.h"

namespace fewstep {

struct ImageFolderConfig : DatasetConfig {
  std::string folder;
  bool require_captions = true;
  bool class_folders = false;
  ImageListOptions images;
  std::string_view kind() const override { return "image_folder"; }
  void describe(config::Visitor& v) override;
  // Subfolders train, heldout and test are the splits where one of them exists; otherwise a hash of the file name
  // decides.
  std::unique_ptr<Dataset> build(Split split) const override;
};

}  // namespace fewstep
