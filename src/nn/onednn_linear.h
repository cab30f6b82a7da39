// Linear layers by oneDNN's kernels. libtorch's float32 products go to MKL, which takes its AVX2 path on AMD processors: with
// AVX-512 oneDNN is about twice as fast there (105 against 230 GFLOP/s a core on a Zen 4), weight reordering included.
#pragma once
#include "src/tensor/tensor.h"

namespace fewstep::nn {

// x [..., in], weight [out, in], bias [out] or undefined -> [..., out], as at::linear. Small products, other types and devices,
// autocast, and processors where it does not pay use at::linear itself. First derivatives only, as src/nn/fused.h.
Tensor onednn_linear(const Tensor& x, const Tensor& weight, const Tensor& bias);

// Whether products of that size go to oneDNN: the same on every run of one binary on one type of processor.
bool onednn_pays(int64_t rows, int64_t in_features, int64_t out_features);
// For tests: as if the processor were one where it pays (true), or not (false), whatever it is.
void force_onednn(bool on);

}  // namespace fewstep::nn
