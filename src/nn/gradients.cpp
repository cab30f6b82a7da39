#include "src/nn/gradients.h"

#include <torch/csrc/autograd/autograd.h>

namespace fewstep::nn {

std::vector<Tensor> gradients(const Tensor& output, const std::vector<Tensor>& inputs, bool retain_graph) {
  return torch::autograd::grad({output}, inputs, {}, retain_graph, /*create_graph=*/false);
}

}  // namespace fewstep::nn
