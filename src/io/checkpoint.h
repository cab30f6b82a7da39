// Checkpoint folders: `checkpoints/step-%09d/` + `latest`, each written whole or not at all, checked when read.
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>

#include "src/base/json.h"
#include "src/tensor/tensor.h"

namespace fewstep::io {

// A folder being written: files go to `<final>.tmp-<pid>`, commit() writes manifest.json (size and SHA-256 of every
// file), fsyncs, renames. The destructor removes what was not committed. DataError names path and reason.
class CheckpointWriter {
 public:
  explicit CheckpointWriter(const std::filesystem::path& final_path);
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;
  const std::filesystem::path& folder() const { return temporary_; }  // write files below this
  void commit();

 private:
  std::filesystem::path final_, temporary_;
  bool committed_ = false;
};

std::filesystem::path checkpoint_path(const std::filesystem::path& run_dir, int64_t step);
// Points `latest` at `step` (atomic), then deletes all but the newest `keep_last` (0: keep all) and stale temporaries.
void publish_checkpoint(const std::filesystem::path& run_dir, int64_t step, int64_t keep_last);
// Empty when whole, else the reason ("model/vq/...safetensors: 512 bytes, expected 2048").
std::string check_checkpoint(const std::filesystem::path& folder);
// The newest whole checkpoint: `latest` first, then downwards; a torn one is skipped with a warning. nullopt: none.
std::optional<std::filesystem::path> find_checkpoint(const std::filesystem::path& run_dir);

}  // namespace fewstep::io
