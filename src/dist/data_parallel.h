// Data-parallel gradients with c10d::Reducer: buckets overlap with backward, averaged over ranks.
#pragma once
#include <memory>

#include "src/dist/world.h"
#include "src/tensor/tensor.h"

namespace fewstep::dist {

// Losses are global sums over global counts: give each rank loss_sum_local * world.size() / count_global, and the average
// over ranks is the gradient of the global mean. One object per optimiser. Broadcasts rank 0's values when built.
class DataParallel {
 public:
  DataParallel(World& world, const NamedTensors& parameters);
  ~DataParallel();
  // backward of one micro-step. `last`: gradients are exchanged during this backward; earlier ones only accumulate.
  void backward(const Tensor& loss, bool last);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

void broadcast_parameters(World& world, const NamedTensors& tensors);

}  // namespace fewstep::dist
