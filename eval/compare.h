// Two sets of images against each other, without a config: `fewstep eval fid|kid|prdc A B`.
#pragma once
#include <filesystem>
#include <string>
#include <vector>

#include "eval/clip_scores.h"
#include "eval/encoder.h"
#include "eval/frechet.h"
#include "eval/statistics.h"
#include "src/base/json.h"

namespace fewstep::eval {

struct CompareOptions {
  bool skip_unreadable = false;
  bool infinity = false;    // fid: also its extrapolation to infinitely many images of side B
  int64_t kid_subsets = 0;  // kid: also as most tools have it, on so many random subsets
  int64_t kid_subset_size = 1000;
  bool force = false;  // statistics of other weights, another pipeline, or without provenance
  std::filesystem::path cache = {};  // folder where features are kept (feature_set.h); empty: nowhere
};
// One side: images (open_images: a folder, an archive, HDF5), or a file of statistics (statistics_file.h) of the same
// encoder.
struct CompareSide {
  std::string path;
  GroupedStatistics groups{20};
  FeatureStatistics total;
  bool count_known = true;  // false: a file of another tool; total.count() means nothing
  Tensor features;          // float [N, D]; undefined for a statistics file
  Tensor logits;            // float [N, K]; undefined as above, and for networks without classes
};
// ConfigError when a statistics file was made with other weights; DataError for unreadable images and empty folders.
CompareSide load_side(const std::filesystem::path& path, const ImageEncoder& encoder,
                      const CompareOptions& options = {});
// Of features computed before, float [N, D], and logits [N, K] or undefined; `path` in messages.
CompareSide side_of_features(std::string path, const Tensor& features, const Tensor& logits);
// The side that distances are taken to: by its features where it has fewer images than features, in place of a singular
// covariance.
FrechetReference frechet_reference(const CompareSide& side);
// Statistics of images into a file: the reference of many comparisons. Returns what was written.
Json write_statistics(const std::filesystem::path& images, const std::filesystem::path& out,
                      const ImageEncoder& encoder, const CompareOptions& options = {});

enum class CompareMetric { fid, kid, prdc, cmmd };
// {"metrics": {name: {value, ci95, n}}, "encoder": {...}, "a": {path, n}, "b": {path, n}}. A is the real side.
Json compare(CompareMetric metric, const CompareSide& a, const CompareSide& b, const ImageEncoder& encoder,
             const CompareOptions& options = {});
// Inception score of one set: {"metrics": ..., "encoder": ...}. ConfigError for a network without classes.
Json score_inception(const CompareSide& side, const ImageEncoder& encoder, int64_t splits = 10);

// Images against their captions: `fewstep eval clip-score`. `captions`: a file of lines {"file_name": ..., "text": ...}
// whose names are relative to `images`; empty: metadata.jsonl in that folder. DataError: no such image, a line without
// a text.
Json compare_captions(const std::filesystem::path& images, const std::filesystem::path& captions,
                      const TextImageEncoder& clip, const ClipScoreKind& kind, bool skip_unreadable = false);

struct CaptionedFiles {
  std::vector<std::string> names;  // relative to the folder of the images
  std::vector<std::string> texts;
};
// The lines {"file_name": ..., "text": ...} of `list`, whose names are relative to `images`. DataError: unreadable, no
// line, no such image, a line without a text.
CaptionedFiles read_captions(const std::filesystem::path& images, const std::filesystem::path& list);

}  // namespace fewstep::eval
