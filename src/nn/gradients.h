// Gradients as values, for terms that are weighed by them; training's own go through backward.
#pragma once
#include <vector>

#include "src/tensor/tensor.h"

namespace fewstep::nn {

// d output / d input for each input, detached. `output`: a scalar. `retain_graph`: the graph can be run backward again. No
// parameter's grad is touched, so reducers of data-parallel training do not see it. Error for an input that output does not
// depend on.
std::vector<Tensor> gradients(const Tensor& output, const std::vector<Tensor>& inputs, bool retain_graph);

}  // namespace fewstep::nn
