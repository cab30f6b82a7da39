// PatchGAN discriminator (Isola et al. 2017, arXiv 1611.07004): a map of logits, each seeing one patch.
#pragma once
#include <cstdint>

#include "src/config/visitor.h"
#include "src/nn/layers.h"

namespace fewstep::models {

struct PatchDiscriminatorConfig {
  int64_t in_channels = 3;
  int64_t channels = 64;       // of the first layer; doubled by each further one, up to 8 times
  int64_t layers = 3;          // stride-2 convolutions (4 x 4)
  int64_t norm_groups = 8;     // GroupNorm after every layer but the first; 0: none
};
void describe(config::Visitor& v, PatchDiscriminatorConfig& c);  // without in_channels: it follows from the data

class PatchDiscriminator : public nn::Module {
 public:
  explicit PatchDiscriminator(const PatchDiscriminatorConfig& config);
  Tensor operator()(const Tensor& images) const;  // [B, C, H, W] -> logits [B, 1, h, w]

 private:
  nn::ModuleList<nn::Conv2d> convs_;
  nn::ModuleList<nn::GroupNorm> norms_;
  nn::Conv2d head_;
};

}  // namespace fewstep::models
