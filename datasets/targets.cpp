#include "datasets/targets.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/log.h"

namespace fewstep {
namespace {

constexpr config::Choice kSmallImageChoices[] = {{"error", 0}, {"drop", 1}, {"upscale", 2}};
constexpr size_t kNamedImages = 5;

// Some of many, for a message.
struct NamedFew {
  std::vector<std::string> names;
  int64_t count = 0;
  void add(std::string name) {
    if (names.size() < kNamedImages) names.push_back(std::move(name));
    ++count;
  }
  std::string text() const {
    return fmt::format("{}{}", fmt::join(names, ", "), count > static_cast<int64_t>(names.size()) ? ", ..." : "");
  }
};

void answer_unreadable(const NamedFew& unreadable, size_t all, const ReadableConfig& c, const std::string& place) {
  if (unreadable.count == 0) return;
  if (c.on_error == OnError::fail)
    fail<DataError>("{}: the size of {} of {} images cannot be read: {} (data.on_error: skip leaves them out)", place,
                    unreadable.count, all, unreadable.text());
  if (static_cast<double>(unreadable.count) > c.max_broken * static_cast<double>(all))
    fail<DataError>("{}: the size of {} of {} images cannot be read, more than data.max_broken {:g} allows: {}", place,
                    unreadable.count, all, c.max_broken, unreadable.text());
  log::warn("{}: {} of {} images cannot be read and are left out: {}", place, unreadable.count, all, unreadable.text());
}

void answer_small(const NamedFew& small, size_t all, SmallImages policy, const std::string& place) {
  if (small.count == 0) return;
  if (policy == SmallImages::error)
    fail<DataError>("{}: {} of {} images are smaller than their target size: {} (set data.small_images: drop to leave them "
                    "out, or upscale to enlarge them)",
                    place, small.count, all, small.text());
  log::warn("{}: {} of {} images are smaller than their target size and are left out: {}", place, small.count, all,
            small.text());
}

}  // namespace

void describe_targets(config::Visitor& v, TargetOptions& o) {
  describe_framing(v, o.framing);
  v.field("small_images", o.small_images,
          "images that would have to be enlarged: error, drop (with a count), or upscale (condition on the true size)",
          kSmallImageChoices);
  v.field("buckets", o.buckets, "target sizes by aspect; a batch holds one of them");
  describe_readable(v, o.readable);
}

Json target_facts(const TargetOptions& o, int64_t image_size) {
  constexpr const char* kPolicies[] = {"error", "drop", "upscale"};
  Json facts = {{"image_size", image_size},
                {"crop", o.framing.crop == CropKind::random ? "random" : "center"},
                {"flip", o.framing.flip},
                {"decode", o.framing.decode == DecodeKind::fast ? "fast" : "exact"},
                {"small_images", kPolicies[static_cast<size_t>(o.small_images)]}};
  if (o.buckets.kind == BucketKind::none) return facts;
  facts["buckets"] = Json::array();
  for (BucketSize size : o.buckets.table()) facts["buckets"].push_back(bucket_text(size));
  return facts;
}

Targets assign_targets(std::span<const io::ProbedImage> probed, std::span<const std::string> names, const TargetOptions& o,
                       int64_t image_size, const std::string& place) {
  FEW_CHECK(probed.size() == names.size(), "{} sizes of {} images", probed.size(), names.size());
  Targets out;
  out.sizes = o.buckets.table();
  if (out.sizes.empty()) out.sizes = {{image_size, image_size}};
  NamedFew unreadable, small;
  for (size_t i = 0; i < probed.size(); ++i) {
    if (!probed[i].error.empty()) {
      unreadable.add(probed[i].error);
      continue;
    }
    const auto [width, height] = probed[i].size;
    const int64_t bucket = nearest_bucket(height, width, out.sizes);
    const BucketSize target = out.sizes[static_cast<size_t>(bucket)];
    if (o.small_images != SmallImages::upscale && needs_upscaling(height, width, target)) {
      small.add(fmt::format("{} is {}x{}, its target {}", names[i], height, width, bucket_text(target)));
      continue;
    }
    out.kept.push_back(static_cast<int64_t>(i));
    out.bucket_of.push_back(bucket);
  }
  answer_unreadable(unreadable, probed.size(), o.readable, place);
  answer_small(small, probed.size(), o.small_images, place);
  if (out.kept.empty() && !probed.empty())
    fail<DataError>("{}: none of {} images is left ({} too small: set data.small_images: upscale or smaller targets)", place,
                    probed.size(), small.count);
  return out;
}

}  // namespace fewstep
