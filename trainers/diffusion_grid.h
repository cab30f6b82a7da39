// Sample pictures of a diffusion training.
#pragma once
#include <cstdint>

#include "datasets/dataset.h"
#include "trainers/diffusion.h"

namespace fewstep {

// What a batch tells the network.
pipelines::ConditionInput condition_input(const Batch& batch);

// uint8 [C, H, W]. Rows of samples, a column a class or a caption of `data`; sizes as of whole images of the first sample's
// size. A model whose timesteps end below noise: images of `data`, and under them what it makes of them, noised to its top.
Tensor draw_grid(const pipelines::DiffusionModel& model, const SampleGridConfig& config, const diffusion::TimestepSampling& timesteps,
                 const Dataset& data, uint64_t seed);

}  // namespace fewstep
