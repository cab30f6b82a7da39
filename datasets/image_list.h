// What image folders and COCO share: a list of image files with captions, read, resized and cropped on demand.
#pragma once
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "datasets/dataset.h"
#include "datasets/targets.h"
#include "src/io/image.h"

namespace fewstep {

enum class CaptionChoice { first, longest, seeded };

struct ImageListOptions {
  int64_t image_size = 256;
  bool grey = false;
  CaptionChoice captions = CaptionChoice::seeded;
  double heldout = 0.02, test = 0.02;  // shares of a seeded hash of the file name
  int64_t split_seed = 0;
  TargetOptions targets = {};  // one square of image_size, or buckets; crops, mirroring, small and broken images
  std::string size_cache = {};
};
void describe_image_list(config::Visitor& v, ImageListOptions& options);

struct ImageEntry {
  int64_t id = 0;  // place in the complete, sorted list: the same in every split
  std::filesystem::path path;
  std::string name;                   // relative, as listed
  std::vector<std::string> captions;  // empty only where captions are not required
  double aesthetic = kNoScore;        // score, where the data has one
  int64_t label = -1;                 // class, where the data has classes
};

// The entries of one split: by a hash of (split_seed, name), so that adding a file moves no other.
std::vector<ImageEntry> entries_of_split(std::vector<ImageEntry> entries, Split split, const ImageListOptions& options);
// Where buckets or small images ask for it, the sizes of all files are read first (their headers, in all cores).
std::unique_ptr<Dataset> make_image_list(std::vector<ImageEntry> entries, const ImageListOptions& options,
                                         std::string description, std::vector<std::string> class_names = {});
bool is_image_name(const std::filesystem::path& path);  // .png .jpg .jpeg .webp in either case

}  // namespace fewstep
