// A folder in COCO's official layout, small: pictures of odd sizes, and captions with all that the real file has.
#pragma once
#include <cstdint>
#include <filesystem>

namespace fewstep::support {

// folder/val2017/*.jpg and folder/captions_val2017.json: `images` pictures with five captions each and one without any.
// Quotes, line breaks, blanks at the end; the first caption of picture 3 is longer than CLIP reads.
void write_small_coco(const std::filesystem::path& folder, int64_t images);

}  // namespace fewstep::support
