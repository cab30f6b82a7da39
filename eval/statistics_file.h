// Statistics of features on disk, with what they were computed from: HDF5 (.h5), or numpy's .npz as pytorch-fid and
// clean-fid use it.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "eval/encoder.h"
#include "eval/statistics.h"

namespace fewstep::eval {

struct Provenance {
  std::string encoder_sha256 = {};  // of the weights; empty: unknown (a file of another tool)
  std::string pipeline = {};        // how images were prepared; empty: the encoder has one way only
  std::string data_sha256 = {};     // of the images: see ImageSource::content_hash
  std::string version = {};         // of fewstep's feature code
  int64_t count = 0;                // images; 0: unknown, as in pytorch-fid's files
};
struct StatisticsFile {
  FeatureStatistics statistics;
  Provenance provenance;
};

bool is_statistics_name(const std::filesystem::path& path);  // .h5 .npz
// Raised when features of the same image with the same weights change.
inline constexpr const char* kFeatureVersion = "features-1";

// By extension. HDF5: mean, scatter, attributes, and a SHA-256 beside the file. npz: mu and sigma (what other tools
// read), n, and the rest as bytes under `provenance`.
void save_statistics(const std::filesystem::path& path, const FeatureStatistics& statistics,
                     const Provenance& provenance);
// DataError: not such a file, not finite, not symmetric.
StatisticsFile load_statistics(const std::filesystem::path& path);
// ConfigError when the file was made with other weights, another image pipeline or other feature code, or does not say;
// `force` turns that into a warning.
void check_provenance(const std::filesystem::path& path, const Provenance& provenance, const EncoderIdentity& encoder,
                      bool force);

}  // namespace fewstep::eval
