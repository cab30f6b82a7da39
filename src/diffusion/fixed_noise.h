// The loss at fixed noise: what a training validates, and what finished models are compared by.
#pragma once
#include <cstdint>
#include <functional>

#include "src/diffusion/prediction.h"
#include "src/diffusion/schedule.h"

namespace fewstep::diffusion {

// Samples, and the noise axis [min, max] (shares of it) in `levels` equal slices.
struct FixedNoise {
  Tensor ids = {};  // int64 [B], CPU
  uint64_t seed = 0;
  int64_t levels = 4;
  double min = 0, max = 1;
};

// Mean squared error of the network's own prediction, without weights: [B], float32 at least, on x0's device. A sample has its
// noise, and its place within a slice, for good: both are keyed by (seed, id). `level`, int64 [B] on the CPU: the slice.
// x0 [B, C, h, w]: of an autoencoder the posterior's mean (a training step draws), so that nothing else is random.
Tensor fixed_noise_loss(const Schedule& schedule, Prediction prediction, const FixedNoise& fixed, const Tensor& level,
                        const Tensor& x0, const std::function<Tensor(const Tensor& x_t, const Tensor& t)>& network);

}  // namespace fewstep::diffusion
