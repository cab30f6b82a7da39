// The `hdf5` kind: files made by `fewstep data pack`, one a split, or by any io::PackedWriter.
// Beside what src/io/packed.h lays down, pack_dataset writes
//   ids         int64 [N]    of the source: random streams stay the same
//   attributes  text [N]     a JSON object each, where the source names attributes
//   micro       int64 [N, 7] the six numbers and `flipped` of each picture, where the source framed them
//   aesthetic   float64 [N]  where some have a score; -1: none
//   image_sizes int64 [N, 2] height, width of encoded pictures
// and the file attributes class_names (JSON list), source (description) and fingerprint.
#pragma once
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "datasets/dataset.h"
#include "datasets/targets.h"

namespace fewstep {

struct PackedConfig : DatasetConfig {
  std::string train, heldout, test;  // files; empty: the split is not there
  int64_t image_size = 0;            // 0: as stored
  bool grey = false;
  TargetOptions targets = {};        // buckets: only of files with encoded pictures
  std::string_view kind() const override { return "hdf5"; }
  void describe(config::Visitor& v) override;
  std::unique_ptr<Dataset> build(Split split) const override;
};

// Every sample with all its captions. The packed file gives the same samples as `dataset` for every (seed, epoch). A
// list of files whose framing changes from epoch to epoch (buckets, random crops, mirroring) is packed as the files are,
// and framed by the reader's own `data.buckets`, `crop`, ...; ConfigError where there are no files to pack.
void pack_dataset(const Dataset& dataset, const std::filesystem::path& out,
                  const std::function<void(int64_t)>& progress);

}  // namespace fewstep
