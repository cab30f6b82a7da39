#include "src/tensor/shape.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "src/base/error.h"
#include "src/tensor/ops.h"

namespace fewstep {
namespace {

std::string text(at::IntArrayRef sizes) { return fmt::format("[{}]", fmt::join(sizes, ", ")); }

}  // namespace

void detail::read_dims(const Tensor& x, int64_t* out, size_t n) {
  if (!x.defined()) fail("expected a tensor of {} dimensions, got an undefined one", n);
  if (static_cast<size_t>(x.dim()) != n) fail("expected a tensor of {} dimensions, got {}", n, text(x.sizes()));
  std::copy(x.sizes().begin(), x.sizes().end(), out);
}

void expect_shape(const Tensor& x, std::initializer_list<int64_t> shape, std::string_view what) {
  const at::IntArrayRef want(shape);
  if (!x.defined()) fail("{}: expected {}, got an undefined tensor", what, text(want));
  bool same = x.dim() == static_cast<int64_t>(want.size());
  for (size_t i = 0; same && i < want.size(); ++i) same = want[i] == -1 || want[i] == x.sizes()[i];
  if (!same) fail("{}: expected {}, got {}", what, text(want), text(x.sizes()));
}

Tensor split_heads(const Tensor& x, int64_t heads) {
  const auto [B, L, C] = dims<3>(x);
  if (heads < 1 || C % heads != 0) fail("split_heads: {} channels do not divide into {} heads", C, heads);
  return x.view({B, L, heads, C / heads}).transpose(1, 2);  // b l (h d) -> b h l d
}

Tensor merge_heads(const Tensor& x) {
  const auto [B, H, L, D] = dims<4>(x);
  return x.transpose(1, 2).reshape({B, L, H * D});  // b h l d -> b l (h d)
}

Tensor patchify(const Tensor& x, int64_t p) {
  const auto [B, C, H, W] = dims<4>(x);
  if (p < 1 || H % p != 0 || W % p != 0) fail("patchify: {} x {} pixels do not divide into patches of {}", H, W, p);
  // b c (h p) (w q) -> b (h w) (c p q)
  return x.reshape({B, C, H / p, p, W / p, p}).permute({0, 2, 4, 1, 3, 5}).reshape({B, (H / p) * (W / p), C * p * p});
}

Tensor unpatchify(const Tensor& x, int64_t p, int64_t height, int64_t width) {
  const auto [B, L, F] = dims<3>(x);
  if (p < 1 || height % p != 0 || width % p != 0 || L != (height / p) * (width / p) || F % (p * p) != 0)
    fail("unpatchify: {} is not an image of {} x {} pixels in patches of {}", text(x.sizes()), height, width, p);
  // b (h w) (c p q) -> b c (h p) (w q)
  return x.reshape({B, height / p, width / p, F / (p * p), p, p})
      .permute({0, 3, 1, 4, 2, 5})
      .reshape({B, F / (p * p), height, width});
}

Tensor append_dims(const Tensor& x, int64_t ndim) {
  if (ndim < x.dim()) fail("append_dims: {} has more than {} dimensions already", text(x.sizes()), ndim);
  std::vector<int64_t> shape = x.sizes().vec();
  shape.resize(static_cast<size_t>(ndim), 1);
  return x.reshape(shape);
}

}  // namespace fewstep
