// The parameters one optimiser moves: gradient exchange over ranks, clipping, schedule, AdamW and EMA in one object.
#pragma once
#include <filesystem>
#include <memory>
#include <string>

#include "src/dist/data_parallel.h"
#include "src/nn/module.h"
#include "src/tensor/optim.h"
#include "trainers/trainer.h"

namespace fewstep {

// A new network on the run's device with random weights that require gradients; its parameters. `offset` tells the seeds of
// several networks of one run apart.
NamedTensors start_network(nn::Module& module, const TrainContext& context, uint64_t offset = 0);

class TrainableSet {
 public:
  // `name` stands in errors and checkpoint keys ("transformer"). Broadcasts rank 0's weights. `horizon`: steps of the
  // learning-rate schedule, a number of steps or those of a stage.
  TrainableSet(std::string name, const NamedTensors& parameters, const OptimizerConfig& config, dist::World& world,
               Horizon horizon);

  // One micro-step. `loss` is this rank's part, scaled so that the mean over ranks of the sum over micro-steps is the
  // global mean. Gradients are exchanged in the backward of the last one.
  void backward(const Tensor& loss, bool last) { parallel_.backward(loss, last); }
  // Clips, updates weights and EMA, zeroes gradients. NumericError, before anything is changed, when the gradient is not
  // finite. Returns the gradient norm before clipping.
  double step(int64_t step);
  double learning_rate(int64_t step) const;

  const NamedTensors& parameters() const { return adamw_.parameters(); }
  bool has_ema() const { return adamw_.has_ema(); }
  // Optimiser moments, "raw" weights when EMA is on (the model folder then holds the EMA), by name.
  void add_state(std::map<std::string, TensorMap>& files) const;
  void load_state(const std::map<std::string, TensorMap>& files);

  // EMA weights in place of the raw ones while the scope lives (sampling, validation, saving); nothing without EMA.
  class EmaScope {
   public:
    explicit EmaScope(TrainableSet& set) : set_(set) { set_.adamw_.swap_ema(); }
    ~EmaScope() { set_.adamw_.swap_ema(); }
    EmaScope(const EmaScope&) = delete;
    EmaScope& operator=(const EmaScope&) = delete;

   private:
    TrainableSet& set_;
  };

 private:
  std::string name_;
  OptimizerConfig config_;
  Horizon horizon_;
  AdamW adamw_;
  dist::DataParallel parallel_;
};

}  // namespace fewstep
