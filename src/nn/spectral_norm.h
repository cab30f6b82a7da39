// Spectral normalisation (Miyato et al. 2018, arXiv 1802.05957) as torch.nn.utils.spectral_norm computes it: the weight that a
// layer applies is weight_orig / sigma, sigma = u^T W v, W = weight_orig seen as [out, rest]. Each forward pass in training mode
// first makes one step of the power iteration v = W^T u / |.|, u = W v / |.| (no gradient); eval mode leaves u and v alone.
// u and v are persistent buffers with PyTorch's names, so that resuming goes on bit for bit. The number of training passes is
// thus part of the state: every rank must make equally many, and passes that shall not count run under nn::EvalMode.
#pragma once
#include <cstdint>

#include "src/nn/module.h"

namespace fewstep::nn {

class SpectralLayer : public Module {
 public:
  Tensor weight_orig;         // [out, in / ...]: what the optimiser sees
  Tensor bias;                // [out], undefined without bias
  Tensor weight_u, weight_v;  // buffers [out], [rest]: unit vectors
  // The normalised weight, differentiable in weight_orig. In training mode u and v make one step.
  Tensor weight() const;

 protected:
  SpectralLayer(at::IntArrayRef shape, bool with_bias);
  void reset(at::Generator& generator) override;  // as the plain layer; u, v: random unit vectors
};

class SpectralLinear : public SpectralLayer {
 public:
  SpectralLinear(int64_t in_features, int64_t out_features, bool bias = true);
  Tensor operator()(const Tensor& x) const;  // [..., in] -> [..., out]
};

struct SpectralConvOptions {
  int64_t kernel = 3, stride = 1;
  int64_t padding = 1;    // at both ends
  bool circular = false;  // padding goes round instead of being zero (1-d only); the padding is at most the length
  bool bias = true;
};

class SpectralConv1d : public SpectralLayer {
 public:
  SpectralConv1d(int64_t in_channels, int64_t out_channels, const SpectralConvOptions& options = {});
  Tensor operator()(const Tensor& x) const;  // [B, C, L]

 private:
  SpectralConvOptions options_;
};

class SpectralConv2d : public SpectralLayer {
 public:
  SpectralConv2d(int64_t in_channels, int64_t out_channels, const SpectralConvOptions& options = {});
  Tensor operator()(const Tensor& x) const;  // [B, C, H, W]

 private:
  SpectralConvOptions options_;
};

}  // namespace fewstep::nn
