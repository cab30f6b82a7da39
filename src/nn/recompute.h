// Activation recompute (Chen et al. 2016, arXiv 1604.06174): inner activations are dropped in forward and made again in
// backward. The module's trainable parameters (and active adapters) are edges of the node, so it works under
// autograd::grad and under c10d::Reducer, also when one module is called twice.
#pragma once
#include <functional>
#include <vector>

#include "src/nn/module.h"

namespace fewstep::nn {

using Tensors = std::vector<Tensor>;
// `fn` reads parameters of `module` only; every other tensor it differentiates through is in `inputs`. Outside grad
// mode: fn(inputs).
Tensors recompute(const Module& module, const std::function<Tensors(const Tensors&)>& fn, const Tensors& inputs);

}  // namespace fewstep::nn
