// How different the images of one prompt are from each other: few-step students tend to lose what their teacher varies.
#pragma once
#include <cstdint>
#include <filesystem>
#include <vector>

#include "eval/encoder.h"
#include "eval/metric.h"
#include "src/base/json.h"

namespace fewstep::eval {

// Mean with its 95 % interval by Student's t: right for few values too. n = 0 and value NaN for none.
Value mean_over(const std::vector<double>& values);

struct Diversity {
  Value distance;       // n: prompts used
  int64_t prompts = 0;  // of at least two images
  int64_t singles = 0;  // prompts of one image, which say nothing and are left out
  int64_t images = 0;   // of the prompts used
};
// Mean over groups of the mean of 1 - cosine over all pairs of a group's images; the interval is over groups. features
// float [N, D], groups N ids. NumericError for a row that is not finite or all zero; ConfigError when no group has two.
Diversity intra_prompt_diversity(const Tensor& features, const std::vector<int64_t>& groups);

// A folder with metadata.jsonl ({"file_name", "text"} a line): images of the same text are a group. {"metrics":
// {"diversity[name@hash]": ...}, "prompts", "prompts_of_one_image", "images", "encoder"}.
Json folder_diversity(const std::filesystem::path& images, const ImageEncoder& encoder);

}  // namespace fewstep::eval
