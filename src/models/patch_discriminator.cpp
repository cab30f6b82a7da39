#include "src/models/patch_discriminator.h"

#include "src/tensor/ops.h"

namespace fewstep::models {
namespace {

int64_t width(const PatchDiscriminatorConfig& c, int64_t layer) {
  return c.channels << std::min<int64_t>(std::max<int64_t>(layer, 0), 3);
}

}  // namespace

void describe(config::Visitor& v, PatchDiscriminatorConfig& c) {
  v.field("channels", c.channels, "width of the first layer; doubled by each further one, up to 8 times", config::kAtLeastOne);
  v.field("layers", c.layers, "stride-2 convolutions: the patch grows with them", config::kAtLeastOne);
  v.field("norm_groups", c.norm_groups, "groups of GroupNorm after every layer but the first; 0: no norm", config::kNonNegative);
  if (c.norm_groups > 0) v.check(c.channels % c.norm_groups == 0, "norm_groups", "must divide channels");
}

// n stride-2 layers (4 x 4), one more with stride 1 (3 x 3), then the logits (1 x 1).
PatchDiscriminator::PatchDiscriminator(const PatchDiscriminatorConfig& c)
    : head_(width(c, c.layers - 1), 1, nn::Conv2dOptions{.kernel = 1, .padding = 0}) {
  for (int64_t i = 0; i < c.layers; ++i) {
    convs_.add(i == 0 ? c.in_channels : width(c, i - 1), width(c, i), nn::Conv2dOptions{.kernel = 4, .stride = 2, .padding = 1});
    if (i > 0 && c.norm_groups > 0) norms_.add(c.norm_groups, width(c, i));
  }
  convs_.add(width(c, c.layers - 1), width(c, c.layers - 1));
  if (c.norm_groups > 0) norms_.add(c.norm_groups, width(c, c.layers - 1));
  child("convs", convs_);
  child("norms", norms_);
  child("head", head_);
}

Tensor PatchDiscriminator::operator()(const Tensor& images) const {
  Tensor x = images;
  for (size_t i = 0; i < convs_.size(); ++i) {
    x = convs_[i](x);
    if (i > 0 && norms_.size() > 0) x = norms_[i - 1](x);
    x = at::leaky_relu(x, 0.2);
  }
  return head_(x);
}

}  // namespace fewstep::models
