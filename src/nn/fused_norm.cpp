#include "src/nn/fused_norm.h"

#include <ATen/Parallel.h>

#include "src/nn/fused_node.h"
#include "src/nn/kernels.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::nn {
namespace {

// Pointers of group `g` of row `b`, the groups counted through: index = b * groups + g.
struct NormLayout {
  const float *x, *shift, *weight, *bias;
  int64_t groups, channels, pixels;  // channels of one group

  kernels::NormGroup at(int64_t index) const {
    const int64_t first = index % groups * channels, row = index * channels;  // channel within the row; and through all rows
    return {x + row * pixels, shift != nullptr ? shift + row : nullptr, weight + first, bias + first, channels, pixels};
  }
};

NormLayout norm_layout(const Tensor& x, const Tensor& shift, const Tensor& weight, const Tensor& bias, int64_t groups) {
  const int64_t C = x.size(1);
  return {x.const_data_ptr<float>(), shift.defined() ? shift.const_data_ptr<float>() : nullptr, weight.const_data_ptr<float>(), bias.const_data_ptr<float>(),
          groups, C / groups, x.numel() / (x.size(0) * C)};
}

struct GroupNormSiluBackward : FusedNode {
  SavedVariable x, shift, weight, bias;
  Tensor moments;  // [B G, 2]
  int64_t groups = 1;
  std::string name() const override { return "GroupNormSiluBackward"; }
  void release_variables() override {
    for (SavedVariable* v : {&x, &shift, &weight, &bias}) v->reset_data();
  }
  variable_list apply(variable_list&& grads) override {
    refuse_double_backward();
    if (!grads[0].defined()) return variable_list(4);
    const Tensor input = x.unpack(), t = shift.unpack(), w = weight.unpack(), b = bias.unpack(), dy = grads[0].contiguous();
    const NormLayout layout = norm_layout(input, t, w, b, groups);
    const Tensor dx = at::empty_like(input), sums = at::empty({3, input.size(0), input.size(1)}, at::kFloat);  // dweight, dbias, dshift of each row
    const float *m = moments.const_data_ptr<float>(), *d = dy.const_data_ptr<float>();
    float *out = dx.mutable_data_ptr<float>(), *sum = sums.mutable_data_ptr<float>();
    const int64_t plane = input.size(0) * input.size(1), group = layout.channels * layout.pixels;
    at::parallel_for(0, input.size(0) * groups, grain(group), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        float* s = sum + i * layout.channels;
        kernels::table().norm_silu_backward(layout.at(i), m + 2 * i, {d + i * group, out + i * group, s, s + plane, t.defined() ? s + 2 * plane : nullptr});
      }
    });
    return {dx, t.defined() ? sums[2] : Tensor(), sums[0].sum(0), sums[1].sum(0)};
  }
};

}  // namespace

Tensor group_norm_silu(const GroupNorm& norm, const Tensor& x, const Tensor& shift) {
  const bool fused = plain_float(x) && plain_float(norm.weight) && (!shift.defined() || plain_float(shift)) && x.numel() > 0;
  if (!fused) return at::silu(norm(shift.defined() ? x + append_dims(shift, x.dim()) : x));
  if (x.dim() < 2 || x.size(1) != norm.weight.numel())
    fail("GroupNorm: expected [B, {}, ...], got {} dimensions with {} channels", norm.weight.numel(), x.dim(), x.dim() > 1 ? x.size(1) : 0);
  if (shift.defined()) expect_shape(shift, {x.size(0), x.size(1)}, "GroupNorm: shift");
  const Tensor input = x.contiguous(), t = shift.defined() ? shift.contiguous() : shift;
  const Tensor y = at::empty(input.sizes(), at::kFloat), moments = at::empty({x.size(0) * norm.groups(), 2}, at::kFloat);
  const NormLayout layout = norm_layout(input, t, norm.weight, norm.bias, norm.groups());
  const int64_t group = layout.channels * layout.pixels;
  float *out = y.mutable_data_ptr<float>(), *m = moments.mutable_data_ptr<float>();
  at::parallel_for(0, x.size(0) * norm.groups(), grain(group), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) kernels::table().norm_silu(layout.at(i), static_cast<float>(norm.eps()), out + i * group, m + 2 * i);
  });
  record(y, {input, t, norm.weight, norm.bias}, [&] {
    auto node = c10::make_intrusive<GroupNormSiluBackward>();
    node->x = SavedVariable(input, false), node->shift = SavedVariable(t, false);
    node->weight = SavedVariable(norm.weight, false), node->bias = SavedVariable(norm.bias, false);
    node->moments = moments, node->groups = norm.groups();
    return node;
  });
  return y;
}

}  // namespace fewstep::nn
