#include "src/nn/onednn_linear.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <atomic>

#include "src/nn/fused_node.h"
#include "src/tensor/ops.h"

namespace fewstep::nn {
namespace {

using LinearPointwise = Tensor(const Tensor&, const Tensor&, const std::optional<Tensor>&, std::string_view, c10::List<std::optional<at::Scalar>>,
                               std::optional<std::string_view>);

// The operator that PyTorch's compiler uses for linear layers; null in builds without oneDNN.
const c10::TypedOperatorHandle<LinearPointwise>* linear_pointwise() {
  static const auto handle = []() -> std::optional<c10::TypedOperatorHandle<LinearPointwise>> {
    const auto found = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
    if (!found) return std::nullopt;
    return found->typed<LinearPointwise>();
  }();
  return handle ? &*handle : nullptr;
}

bool processor_gains() {
#if defined(__x86_64__)
  return __builtin_cpu_is("amd") && __builtin_cpu_supports("avx512f");
#else
  return false;
#endif
}

std::atomic<bool>& onednn_gains() {
  static std::atomic<bool> value = processor_gains();
  return value;
}

// a [M, K] b [N, K]^T (+ bias), all contiguous.
Tensor onednn_product(const Tensor& a, const Tensor& b, const Tensor& bias = {}) {
  const std::optional<Tensor> maybe_bias = bias.defined() ? std::optional<Tensor>(bias) : std::nullopt;
  return linear_pointwise()->call(a, b, maybe_bias, "none", c10::List<std::optional<at::Scalar>>(), "");
}

struct OnednnLinearBackward : FusedNode {
  SavedVariable x, weight;  // [M, K], [N, K]
  std::string name() const override { return "OnednnLinearBackward"; }
  void release_variables() override {
    x.reset_data();
    weight.reset_data();
  }
  variable_list apply(variable_list&& grads) override {
    refuse_double_backward();
    variable_list out(3);
    if (!grads[0].defined()) return out;
    const Tensor dy = grads[0].contiguous();
    if (task_should_compute_output(0)) out[0] = onednn_product(dy, weight.unpack().t().contiguous());
    if (task_should_compute_output(1)) out[1] = onednn_product(dy.t().contiguous(), x.unpack().t().contiguous());
    if (task_should_compute_output(2)) out[2] = dy.sum(0);
    return out;
  }
};

}  // namespace

void force_onednn(bool on) { onednn_gains() = on; }

bool onednn_pays(int64_t rows, int64_t in_features, int64_t out_features) {
  return onednn_gains() && rows >= 64 && rows * in_features * out_features >= (int64_t{1} << 20) && linear_pointwise() != nullptr;
}

Tensor onednn_linear(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const auto plain = [](const Tensor& t) { return plain_float(t) && !t.is_quantized(); };
  const bool usable = x.dim() >= 1 && plain(x) && plain(weight) && (!bias.defined() || plain(bias)) && weight.dim() == 2 && x.size(-1) == weight.size(1) &&
                      x.numel() > 0 && onednn_pays(x.numel() / x.size(-1), weight.size(1), weight.size(0)) && !at::autocast::is_autocast_enabled(at::kCPU);
  if (!usable) return at::linear(x, weight, bias.defined() ? std::optional<Tensor>(bias) : std::nullopt);
  const Tensor rows = x.reshape({-1, x.size(-1)}).contiguous();
  const Tensor y = [&] {
    const at::NoGradGuard no_grad;
    return onednn_product(rows.detach(), weight.detach().contiguous(), bias.defined() ? bias.detach() : bias);
  }();
  record(y, {rows, weight, bias}, [&] {
    auto node = c10::make_intrusive<OnednnLinearBackward>();
    node->x = SavedVariable(rows, false), node->weight = SavedVariable(weight, false);
    return node;
  });
  if (x.dim() == 2) return y;
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = weight.size(0);
  return y.view(shape);
}

}  // namespace fewstep::nn
