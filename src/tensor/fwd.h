// Declarations only: for headers that pass tensors by reference or return them.
#pragma once
#include <string>
#include <vector>

namespace at {
class Tensor;
struct Generator;
}  // namespace at

namespace fewstep {
using at::Tensor;
struct NamedTensor;
}  // namespace fewstep
