// Shapes: destructuring with a check, and the few reshapes models use, each under its einops line.
#pragma once
#include <array>
#include <cstdint>
#include <initializer_list>
#include <string_view>

#include "src/tensor/fwd.h"

namespace fewstep {

namespace detail {
void read_dims(const Tensor& x, int64_t* out, size_t n);
}
// auto [B, C, H, W] = dims<4>(x);  Error when x has another number of dimensions.
template <size_t N>
std::array<int64_t, N> dims(const Tensor& x) {
  std::array<int64_t, N> out;
  detail::read_dims(x, out.data(), N);
  return out;
}

// Public entries: every -1 matches any size. Error: "tokens: expected [8, -1, 64], got [8, 12, 32]".
void expect_shape(const Tensor& x, std::initializer_list<int64_t> shape, std::string_view what);

Tensor split_heads(const Tensor& x, int64_t heads);   // b l (h d) -> b h l d
Tensor merge_heads(const Tensor& x);                  // b h l d -> b l (h d)
Tensor patchify(const Tensor& x, int64_t p);          // b c (h p) (w q) -> b (h w) (c p q)
Tensor unpatchify(const Tensor& x, int64_t p, int64_t height, int64_t width);  // the inverse; sizes in pixels
Tensor append_dims(const Tensor& x, int64_t ndim);    // [B] -> [B, 1, ..., 1]

}  // namespace fewstep
