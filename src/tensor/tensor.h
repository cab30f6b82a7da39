// For headers whose structs hold tensors. Everything that calls operators includes src/tensor/ops.h in its .cpp.
#pragma once
#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <vector>

#include "src/tensor/fwd.h"

namespace fewstep {

struct NamedTensor {
  std::string name;
  Tensor tensor;
};
using NamedTensors = std::vector<NamedTensor>;
using TensorMap = std::map<std::string, Tensor>;

}  // namespace fewstep
