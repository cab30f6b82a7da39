// For the .cpp files of fused operators: a node of the graph whose backward pass is ours.
#pragma once
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <algorithm>
#include <vector>

#include "src/base/error.h"
#include "src/tensor/modes.h"
#include "src/tensor/tensor.h"

namespace fewstep::nn {

using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

inline constexpr int64_t kGrain = 16384;  // values a thread takes at least

inline bool plain_float(const Tensor& t) { return t.is_cpu() && t.scalar_type() == at::kFloat && t.layout() == at::kStrided; }

inline int64_t grain(int64_t row) { return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, row)); }

struct FusedNode : Node {
  void refuse_double_backward() const {
    if (at::GradMode::is_enabled())
      fail("{}: a gradient of a gradient (create_graph) is not supported by the fused CPU operator", name());
  }
};

// Gives `out`, a fresh tensor, its place in the graph.
template <class Make>
void record(const Tensor& out, const std::vector<Tensor>& inputs, Make make) {
  if (!at::GradMode::is_enabled()) return;
  if (std::none_of(inputs.begin(), inputs.end(), [](const Tensor& t) { return t.requires_grad(); })) return;
  c10::intrusive_ptr<Node> node = make();
  node->set_next_edges(torch::autograd::collect_next_edges(inputs));
  torch::autograd::set_history(out, node);
}

}  // namespace fewstep::nn
