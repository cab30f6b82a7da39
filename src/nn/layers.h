// Layers: parameters with PyTorch's names, shapes and initialisation; the call operator is const.
#pragma once
#include <cstdint>

#include "src/nn/lora.h"
#include "src/nn/module.h"

namespace fewstep::nn {

class Linear : public Module {
 public:
  Linear(int64_t in_features, int64_t out_features, bool bias = true);
  Tensor operator()(const Tensor& x) const;  // [..., in] -> [..., out], plus the active adapters
  Tensor weight;                             // [out, in]
  Tensor bias;                               // [out], undefined without bias
  LoraSlots lora;
  LoraSlots* lora_slots() override { return &lora; }
  // Large products by src/nn/onednn_linear.h: for networks that need no bitwise equality between batch sizes.
  void use_onednn(bool on) { onednn_ = on; }

 protected:
  void reset(at::Generator& generator) override;  // U(+-1/sqrt(in)), as torch.nn.Linear

 private:
  bool onednn_ = false;
};

struct Conv2dOptions {
  int64_t kernel = 3, stride = 1, padding = 1, groups = 1;
  bool bias = true;
};
class Conv2d : public Module {
 public:
  Conv2d(int64_t in_channels, int64_t out_channels, const Conv2dOptions& options = {});
  Tensor operator()(const Tensor& x) const;  // [B, C, H, W]
  Tensor weight;                             // [out, in / groups, k, k]
  Tensor bias;
  LoraSlots lora;
  LoraSlots* lora_slots() override { return &lora; }
  int64_t groups() const { return options_.groups; }

 protected:
  void reset(at::Generator& generator) override;

 private:
  Conv2dOptions options_;
};

class Embedding : public Module {
 public:
  Embedding(int64_t count, int64_t dim);
  Tensor operator()(const Tensor& ids) const;  // int64 [...] -> [..., dim]
  Tensor weight;                               // [count, dim]

 protected:
  void reset(at::Generator& generator) override;  // N(0, 1)
};

class RMSNorm : public Module {
 public:
  explicit RMSNorm(int64_t dim, double eps = 1e-6);
  Tensor operator()(const Tensor& x) const;  // over the last dimension; statistics in float32 as transformers does
  Tensor weight;

 protected:
  void reset(at::Generator& generator) override;

 private:
  double eps_;
};

class LayerNorm : public Module {
 public:
  explicit LayerNorm(int64_t dim, double eps = 1e-5, bool affine = true);
  Tensor operator()(const Tensor& x) const;
  Tensor weight, bias;

 protected:
  void reset(at::Generator& generator) override;

 private:
  int64_t dim_;
  double eps_;
};

class GroupNorm : public Module {
 public:
  GroupNorm(int64_t groups, int64_t channels, double eps = 1e-5);
  Tensor operator()(const Tensor& x) const;  // [B, C, ...]
  Tensor weight, bias;
  int64_t groups() const { return groups_; }
  double eps() const { return eps_; }

 protected:
  void reset(at::Generator& generator) override;

 private:
  int64_t groups_;
  double eps_;
};

}  // namespace fewstep::nn
