// Files of captions: COCO's official layout (Chen et al. 2015, arXiv 1504.00325) and Karpathy's splits of it.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace fewstep {

struct CocoCaption {
  int64_t id = 0;    // of the annotation: unique in its file
  std::string text;  // trimmed; line breaks inside are kept
};
struct CocoImage {
  int64_t id = 0;
  std::string file_name;              // relative to the folder of the images
  std::vector<CocoCaption> captions;  // in the order of the file; some official images have none
};

// captions_*.json: {"images": [{id, file_name, ...}], "annotations": [{id, image_id, caption}]}, images in the order of
// the file. DataError names the array and the row that is wrong.
std::vector<CocoImage> read_coco_captions(const std::filesystem::path& path);
// dataset_coco.json (Karpathy and Fei-Fei 2015): images of `split` ("train", "restval", "val", "test"), named
// filepath/filename.
std::vector<CocoImage> read_karpathy_captions(const std::filesystem::path& path, const std::string& split);

}  // namespace fewstep
