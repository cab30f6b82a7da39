// The run folder: lock, resolved config, metrics.jsonl, TensorBoard events, sample pictures, checkpoints.
#pragma once
#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "trainers/stages.h"
#include "trainers/trainer.h"

namespace fewstep {

class RunFolder {
 public:
  // Rank 0 only. Creates the folder and locks it. DataError: unwritable, or in use by another live process (its pid).
  RunFolder(const std::filesystem::path& folder, const std::string& resolved_config);
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  // One line of metrics.jsonl and the same scalars to TensorBoard, under `group` ("train", "validation").
  void log(const std::string& group, const Json& fields, const std::map<std::string, double>& means, int64_t step);
  void save_samples(const Tensor& grid, int64_t step);
  void flush();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

struct CheckpointState {
  int64_t step = 0, images = 0, epoch = 0;
  int64_t stage = 0;   // that wrote it
  double seconds = 0;  // of training so far
};
// Writes `<name>` below checkpoints/: model/, <stem>.safetensors, state.json (with the environment that bitwise resume
// depends on and the resolved config).
void write_checkpoint(const std::filesystem::path& target, const Trainer& trainer, const CheckpointState& state,
                      const std::string& resolved_config, int world_size);
CheckpointState checkpoint_state(const std::filesystem::path& folder);  // where it was written
// Loads the checkpoint into the trainer, at a stage's beginning what `carry` says. ConfigError lists the keys of the model and
// data that changed since.
CheckpointState read_checkpoint(const std::filesystem::path& folder, Trainer& trainer, const std::string& resolved_config,
                                int world_size, const CarryConfig& carry = {});

}  // namespace fewstep
