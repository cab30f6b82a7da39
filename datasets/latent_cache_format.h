// Names inside a latent cache, shared by its writer and its reader.
#pragma once
#include <string>
#include <string_view>

#include "datasets/buckets.h"

namespace fewstep {

inline constexpr std::string_view kLatentCacheFormat = "fewstep latent cache 1";
inline std::string cache_dataset(BucketSize size, std::string_view name) {
  return "bucket_" + bucket_text(size) + "/" + std::string(name);
}

}  // namespace fewstep
