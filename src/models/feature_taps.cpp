// The features that a discriminator reads (feature_discriminator.h).
#include <algorithm>

#include "src/base/error.h"
#include "src/models/conv_encoder.h"
#include "src/models/dinov2.h"
#include "src/models/feature_discriminator.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::models {
namespace {

constexpr double kTapMean[] = {0.485, 0.456, 0.406}, kTapDeviation[] = {0.229, 0.224, 0.225};  // ImageNet

void check_taps(const std::vector<int64_t>& blocks, int64_t count, std::string_view what) {
  if (blocks.empty()) fail<ConfigError>("features of the discriminator: no {} chosen", what);
  for (const int64_t block : blocks)
    if (block < 0 || block >= count)
      fail<ConfigError>("features of the discriminator: {} {} is not one of 0 to {}", what, block, count - 1);
}

// `side` pixels on the short side, both sides the nearest multiple of `multiple`.
Tensor resized_for_taps(const Tensor& images, int64_t side, int64_t multiple) {
  const auto [B, C, H, W] = dims<4>(images);
  const double scale = side > 0 ? static_cast<double>(side) / static_cast<double>(std::min(H, W)) : 1.0;
  const auto rounded = [&](int64_t length) {
    return std::max<int64_t>(1, std::llround(scale * static_cast<double>(length) / static_cast<double>(multiple))) * multiple;
  };
  const int64_t height = rounded(H), width = rounded(W);
  if (height == H && width == W) return images;
  return at::_upsample_bilinear2d_aa(images, {height, width}, /*align_corners=*/false);
}

Tensor with_channels(const Tensor& images, int64_t channels) {
  return images.size(1) == 1 && channels > 1 ? images.expand({-1, channels, -1, -1}) : images;
}

// The network is const to its callers' eyes: flags are put back at the end.
struct FrozenNetwork {
  explicit FrozenNetwork(nn::Module& network) : frozen(network), eval(network) {}
  nn::Frozen frozen;
  nn::EvalMode eval;
};

}  // namespace

std::vector<Tensor> feature_taps(Dinov2Model& network, const Tensor& images, const FeatureTapOptions& options) {
  const Dinov2Config& c = network.config();
  check_taps(options.blocks, c.num_hidden_layers + 1, "block");
  const FrozenNetwork frozen(network);
  Tensor x = with_channels(resized_for_taps(images, options.side, c.patch_size), c.num_channels);
  if (options.imagenet) {
    if (c.num_channels != 3)
      fail<ConfigError>("features of the discriminator: ImageNet normalisation needs 3 channels, the network reads {}; set imagenet: false",
                        c.num_channels);
    const auto constant = [&](const double* values) { return at::tensor(at::ArrayRef<double>(values, 3), x.options()).view({1, 3, 1, 1}); };
    x = ((x + 1) / 2 - constant(kTapMean)) / constant(kTapDeviation);
  }
  const Dinov2Output out = network(x, *std::max_element(options.blocks.begin(), options.blocks.end()));
  std::vector<Tensor> taps;
  for (const int64_t block : options.blocks) {
    const Tensor& state = out.hidden_states[static_cast<size_t>(block)];  // [B, 1 + N, D]
    taps.push_back((state.narrow(1, 1, state.size(1) - 1) + state.narrow(1, 0, 1)).transpose(1, 2));
  }
  return taps;
}

std::vector<Tensor> feature_taps(ConvEncoder& network, const Tensor& images, const FeatureTapOptions& options) {
  const ConvEncoderConfig& c = network.config();
  check_taps(options.blocks, static_cast<int64_t>(c.channels.size()), "stage");
  const FrozenNetwork frozen(network);
  const std::vector<Tensor> stages =
      network.stages(with_channels(resized_for_taps(images, options.side, 1), c.in_channels));
  std::vector<Tensor> taps;
  for (const int64_t stage : options.blocks) taps.push_back(stages[static_cast<size_t>(stage)].flatten(2));
  return taps;
}

std::vector<int64_t> tap_channels(const Dinov2Model& network, const FeatureTapOptions& options) {
  check_taps(options.blocks, network.config().num_hidden_layers + 1, "block");
  return std::vector<int64_t>(options.blocks.size(), network.config().hidden_size);
}

std::vector<int64_t> tap_channels(const ConvEncoder& network, const FeatureTapOptions& options) {
  check_taps(options.blocks, static_cast<int64_t>(network.config().channels.size()), "stage");
  std::vector<int64_t> out;
  for (const int64_t stage : options.blocks) out.push_back(network.config().channels[static_cast<size_t>(stage)]);
  return out;
}

}  // namespace fewstep::models
