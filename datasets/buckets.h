// Multi-aspect buckets (SDXL, section 2.3 and appendix I): tables of target sizes, and which of them an image goes to.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "src/config/visitor.h"

namespace fewstep {

struct BucketSize {
  int64_t height = 0, width = 0;
  bool operator==(const BucketSize&) const = default;
};
std::string bucket_text(BucketSize size);  // "704x1344": height x width, as the paper's table has it

// The paper's 40, in its order. 704x1344 has no transpose in it.
const std::vector<BucketSize>& sdxl_buckets();
// Every height that is a multiple of `step` in [min_side, max_side] with the widest width whose area is at most base^2
// and every narrower one of at least 0.9 base^2; and the transposes; those of aspect above max_aspect left out. Sorted
// by height, then falling width. (1024, 64, 512, 2048, 4) gives the paper's 40 and 1344x704. ConfigError: none is left.
std::vector<BucketSize> make_buckets(int64_t base, int64_t step, int64_t min_side, int64_t max_side, double max_aspect);
// |log(h / w) - log(h_b / w_b)| is least: the same choice for an image and its transpose. The first of equals.
int64_t nearest_bucket(int64_t height, int64_t width, std::span<const BucketSize> buckets);
double aspect_distance(BucketSize a, BucketSize b);  // |log(h_a / w_a) - log(h_b / w_b)|

enum class BucketKind { none, sdxl, generated, list };
// A bucket with fewer images than a global batch: an error that says so; its images go to the bucket of the nearest
// aspect; or they are left out, with a count.
enum class SmallBuckets { error, merge, drop };

struct BucketConfig {
  BucketKind kind = BucketKind::none;  // none: one square size
  int64_t base = 1024, step = 64, min_side = 512, max_side = 2048;  // generated
  double max_aspect = 4.0;
  std::vector<std::string> sizes = {};  // list: HEIGHTxWIDTH
  SmallBuckets small_buckets = SmallBuckets::error;
  std::vector<BucketSize> table() const;  // empty for none; ConfigError names a size that cannot be read
};
void describe(config::Visitor& v, BucketConfig& c);

}  // namespace fewstep
