// The `hdf5` kind: files made by `fewstep data pack`, one a split, or by any io::PackedWriter.
// Beside what src/io/packed.h lays down, pack_dataset writes
//   ids         int64 [N]    of the source: random streams stay the same
//   attributes  text [N]     a JSON object each, where the source names attributes
// and the file attributes class_names (JSON list), source (description) and fingerprint.
#pragma once
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "datasets/dataset.h"

namespace fewstep {

struct PackedConfig : DatasetConfig {
  std::string train, heldout, test;  // files; empty: the split is not there
  int64_t image_size = 0;            // 0: as stored
  bool grey = false;
  std::string_view kind() const override { return "hdf5"; }
  void describe(config::Visitor& v) override;
  std::unique_ptr<Dataset> build(Split split) const override;
};

// Every sample with all its captions. The packed file gives the same samples as `dataset` for every (seed, epoch).
void pack_dataset(const Dataset& dataset, const std::filesystem::path& out,
                  const std::function<void(int64_t)>& progress);

}  // namespace fewstep
