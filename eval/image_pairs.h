// Two folders of images, pair by pair: `fewstep eval pairs A B`.
#pragma once
#include <filesystem>
#include <string>
#include <vector>

#include "eval/pair_metrics.h"
#include "src/base/json.h"

namespace fewstep::eval {

struct ImagePair {
  std::string name;  // A's file, relative to its folder
  std::filesystem::path a, b;
};
enum class PairBy {
  file_name,  // relative path; the extension does not count, so that a.jpg may be the original of a.png
  caption     // metadata.jsonl of both: the k-th image of a caption in A with the k-th of the same caption in B
};
// In A's order. The files of a folder are those of image_files(). DataError: an empty folder, an image without partner
// (named, with how many there are), a name that two files of a folder share, sizes that differ (named, both sizes).
std::vector<ImagePair> find_pairs(const std::filesystem::path& a, const std::filesystem::path& b,
                                  PairBy by = PairBy::file_name);

struct PairScores {
  std::vector<double> psnr, ssim, perceptual;  // a pair each; perceptual is empty without a network
};
// Images are compared as RGB. Interrupted on Ctrl-C.
PairScores score_pairs(const std::vector<ImagePair>& pairs, const PerceptualDistance* perceptual);

// {"metrics": {"PSNR", "SSIM", PerceptualDistance::metric()}, "pairs", "identical", "worst": [{"name", metric: value}],
// "worst_by"}. The worst `worst` pairs are by the perceptual distance, or else by SSIM. Equal pairs have no finite
// PSNR: its mean is over the others, and says so.
Json summarise_pairs(const std::vector<ImagePair>& pairs, const PairScores& scores,
                     const PerceptualDistance* perceptual, int64_t worst = 5);

}  // namespace fewstep::eval
