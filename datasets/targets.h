// Which size every image of a list is framed to: one square, or the bucket nearest to its aspect; and what becomes of
// images that are too small for theirs.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "datasets/framing.h"
#include "datasets/readable_samples.h"
#include "src/base/json.h"
#include "src/io/image_sizes.h"

namespace fewstep {

// An image that would have to be enlarged: an error that names it, left out with a count, or enlarged (then its true
// size should condition the network: the paper's answer to throwing 39 % of the data away).
enum class SmallImages { error, drop, upscale };

struct TargetOptions {
  FramingConfig framing = {};
  SmallImages small_images = SmallImages::upscale;
  BucketConfig buckets = {};
  ReadableConfig readable = {};
  // Whether the sizes of all files have to be known before the first sample is read.
  bool needs_sizes() const { return buckets.kind != BucketKind::none || small_images != SmallImages::upscale; }
};
void describe_targets(config::Visitor& v, TargetOptions& o);  // crop, flip, decode, small_images, buckets, on_error, max_broken
// {"image_size", "crop", "flip", "decode", "small_images", "buckets": ["1024x1024", ...]} in this order; buckets only
// where there are some.
Json target_facts(const TargetOptions& o, int64_t image_size);

struct Targets {
  std::vector<BucketSize> sizes = {};   // one or more
  std::vector<int64_t> kept = {};       // places in the list that was given, rising
  std::vector<int64_t> bucket_of = {};  // of kept[i]; empty: all are sizes[0]
};
// `probed`: sizes of all images in order; `names` for messages. `image_size`: the square without buckets.
// DataError: an unreadable header (unless on_error is skip and they are few), a small image (unless it may be), none
// left. `place` names the data set.
Targets assign_targets(std::span<const io::ProbedImage> probed, std::span<const std::string> names, const TargetOptions& o,
                       int64_t image_size, const std::string& place);

}  // namespace fewstep
