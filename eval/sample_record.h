// samples.safetensors: what an evaluation keeps of its generated set, so that a later one can be compared with it image
// by image.
#pragma once
#include <filesystem>
#include <string>
#include <vector>

#include "src/tensor/tensor.h"

namespace fewstep::eval {

struct SampleRecord {
  Tensor tokens = {};         // int64 [N, L]
  Tensor features = {};       // float [N, D] of the judge; undefined without one
  Tensor caption_keys = {};   // int64 [N]: a hash of each caption
  int64_t seed = 0;           // sample i was drawn with (seed, i)
  std::string judge = {};     // metric name of the judge, "FD[judge@1a2b3c4d]"; "" without one
  std::string model = {};     // SHA-256 of the transformer's weights
  std::string decoding = {};  // options that differ from the defaults
  std::string protocol = {};
};

// int64 [N]; equal captions, equal keys.
Tensor caption_keys(const std::vector<std::string>& captions);

void save_samples(const std::filesystem::path& path, const SampleRecord& record);
// DataError naming the file and what is wrong with it.
SampleRecord load_samples(const std::filesystem::path& path);

// What can be known of a baseline before anything is sampled: it is there, and of this seed.
SampleRecord open_baseline(const std::filesystem::path& folder, int64_t seed);
// The baseline of an evaluation with `paired_with: folder`, cut to the samples both have: min of the two numbers.
// ConfigError unless the seed is equal and sample i has the same caption on both sides.
SampleRecord load_baseline(const std::filesystem::path& folder, const SampleRecord& own);

}  // namespace fewstep::eval
