// What a trainer is. One loop (loop.h) runs them all; a step reads like the algorithm box of its paper.
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "datasets/dataset.h"
#include "src/base/json.h"
#include "src/config/visitor.h"
#include "src/dist/world.h"
#include "src/tensor/tensor.h"

namespace fewstep {

// Means as (sum, count), so that they reduce over micro-steps, ranks and log intervals without bias.
class Metrics {
 public:
  void add(const std::string& name, const Tensor& sum, double count = 1);  // keeps the tensor: no device sync
  void add(const std::string& name, double sum, double count = 1);
  void merge(const Metrics& other);
  // All-reduced means over everything added since the last call; clears. Every rank must have the same names; one whose count
  // is 0 everywhere is left out.
  std::map<std::string, double> reduce(dist::World& world);
  bool empty() const { return sums_.empty(); }

 private:
  std::map<std::string, std::pair<Tensor, double>> sums_;  // float64 scalar, count
};

// The steps a learning-rate schedule spans.
struct Horizon {
  int64_t first = 0, steps = 0;
  Horizon(int64_t total) : steps(total) {}
  Horizon(int64_t first_step, int64_t count) : first(first_step), steps(count) {}
};

// What a trainer is built with.
struct TrainContext {
  dist::World& world;
  uint64_t seed = 0;
  int64_t total_steps = 0;     // of the run
  Horizon horizon = 0;         // of learning rates: the run, or a stage of it
  int64_t batch_size = 0;      // global
  int64_t accumulate = 1;      // micro-steps per optimiser step
  const Dataset& train;
  const Dataset* validation;   // may be null
  // Model folder of the checkpoint whose state is loaded next; empty at a run's beginning. What a trainer once took from its
  // data (a tokenizer, the scale of pixels) it takes from here: a later stage may have other data.
  std::filesystem::path resume = {};
};

struct StepContext {
  int64_t step = 0;            // 0-based optimiser step
  int64_t epoch = 0;
  uint64_t seed = 0;
};

class Trainer {
 public:
  virtual ~Trainer() = default;
  // One optimiser step on this rank's share of the global batch (micro-batching included). Non-finite: NumericError with
  // the loss's name; the loop adds step and sample ids.
  virtual Metrics step(const Batch& batch, const StepContext& context) = 0;
  // Loss on fixed data and fixed noise, EMA weights when there are any. No gradients.
  virtual Metrics validate(const Batch& batch) = 0;
  // A picture of the state: uint8 [C, H, W], or undefined when there is nothing to show.
  virtual Tensor sample_grid(uint64_t seed) = 0;
  // Writes the self-contained model folder (EMA weights when there are any): model_index.json and one folder a component.
  virtual void save_model(const std::filesystem::path& folder) const = 0;
  // Everything resume needs, by file stem: "weights", "optimizer", "ema", ... (model/ is for users, not for resume).
  virtual std::map<std::string, TensorMap> state() const = 0;
  virtual void load_state(const std::map<std::string, TensorMap>& files) = 0;
  virtual std::string throughput_unit() const { return "images"; }
  virtual double units_per_sample() const { return 1; }        // 64 for tokens of an 8 x 8 grid
  virtual double flops_per_sample() const { return 0; }        // forward + backward, by arithmetic; 0: unknown
};

struct TrainerConfig {
  virtual ~TrainerConfig() = default;
  virtual std::string_view kind() const = 0;
  virtual void describe(config::Visitor& v) = 0;
  // Keys (below `trainer.`) that make the network: no stage of a run can change them.
  virtual bool fixed(std::string_view) const { return false; }
  virtual std::unique_ptr<Trainer> build(const TrainContext& context) const = 0;
};
struct TrainerKind {
  std::string_view name;
  std::unique_ptr<TrainerConfig> (*make)();
};
std::span<const TrainerKind> trainer_kinds();

}  // namespace fewstep
