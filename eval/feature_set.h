// Features of every image of a source: computed by all processes together, and kept on disk under all they depend on.
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "eval/encoder.h"
#include "eval/image_source.h"
#include "src/dist/world.h"

namespace fewstep::eval {

struct FeatureOptions {
  int64_t batch = 32;
  int64_t threads = 1;  // that decode, in each process
  bool skip_unreadable = false;
  std::string label = "images";
  std::filesystem::path cache = {};  // folder; empty: nothing is kept
};
struct FeatureSet {
  Tensor features;  // float32 [N, D] on the CPU, in the order of the source
  Tensor logits;    // float32 [N, K]; undefined for networks without classes
  Tensor places;    // int64 [N] in the source: fewer than its size where images could not be read
  int64_t constant = 0, grey = 0;
  std::vector<std::string> unreadable;  // of this process
  int64_t unreadable_count = 0;         // of all
  bool cached = false;                  // read, not computed
};

// Rank r reads images r, r + R, ...; every rank ends with all of them. With a cache, features are looked up by the hash
// of (images, weights, pipeline, feature code) and written by rank 0 when every image could be read. DataError when the
// file found there says that it holds something else.
FeatureSet compute_features(const std::shared_ptr<const ImageSource>& source, const ImageEncoder& encoder,
                            const FeatureOptions& options, dist::World& world);

// The rows of every rank, rank 0's first; the ranks may have different numbers of rows.
Tensor gather_rows(const Tensor& rows, dist::World& world);

}  // namespace fewstep::eval
