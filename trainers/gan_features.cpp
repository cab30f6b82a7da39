#include "trainers/gan_features.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/models/contrastive.h"
#include "src/models/conv_encoder.h"
#include "src/models/dinov2.h"
#include "src/models/model.h"
#include "src/models/model_folder.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep {
namespace fs = std::filesystem;
namespace {

// The component that is an encoder. A folder with a config.json of its own is the network itself (a DINOv2 checkpoint).
fs::path encoder_folder(const fs::path& folder, std::string_view key) {
  if (!fs::exists(folder))
    fail<ConfigError>("{}: {}: no such folder; train features with configs/distill/dino.yaml, or name the folder of a DINOv2 checkpoint", key,
                      folder.string());
  if (fs::exists(folder / "config.json")) return folder;
  const fs::path root = models::as_model_folder(folder);
  for (const char* component : {"encoder", "clip"})
    if (fs::exists(root / component / "config.json")) return root / component;
  fail<ConfigError>("{}: {}: no encoder in it (expected a component 'encoder' or 'clip', or config.json of a DINOv2 network)", key, root.string());
}

std::vector<int64_t> spread_blocks(int64_t layers) {
  std::vector<int64_t> blocks;
  for (int64_t quarter = 0; quarter <= 4; ++quarter)
    if (const int64_t block = (layers * quarter + 2) / 4; blocks.empty() || block > blocks.back()) blocks.push_back(block);
  return blocks;
}

double vit_flops(const models::Dinov2Config& c, int64_t height, int64_t width, int64_t blocks) {
  const double D = static_cast<double>(c.hidden_size), patch = static_cast<double>(c.patch_size);
  const double N = 1 + static_cast<double>(height / c.patch_size) * static_cast<double>(width / c.patch_size);
  const double block = N * (4 + 2 * static_cast<double>(c.mlp_ratio)) * D * D + 2 * N * N * D;
  return 2 * (static_cast<double>(blocks) * block + N * static_cast<double>(c.num_channels) * patch * patch * D);
}

double conv_flops(const models::ConvEncoderConfig& c, int64_t height, int64_t width) {
  double total = 0, before = static_cast<double>(c.in_channels);
  for (size_t i = 0; i < c.channels.size(); ++i) {
    height = (height + c.strides[i] - 1) / c.strides[i], width = (width + c.strides[i] - 1) / c.strides[i];
    const double places = static_cast<double>(height * width), out = static_cast<double>(c.channels[i]), k = static_cast<double>(c.kernels[i]);
    total += 2 * places * out * (before * k * k + static_cast<double>(c.blocks[i] - 1) * out * 9);
    before = out;
  }
  return total;
}

}  // namespace

GanFeatures::GanFeatures(const std::string& folder, const std::vector<int64_t>& blocks, int64_t side, int64_t image_channels,
                         std::string_view key)
    : module_(models::load_model(encoder_folder(folder, key))), options_{.blocks = blocks, .side = side} {
  vit_ = dynamic_cast<models::Dinov2Model*>(module_.get());
  conv_ = dynamic_cast<models::ConvEncoder*>(module_.get());
  if (auto* clip = dynamic_cast<models::ContrastiveModel*>(module_.get())) conv_ = &clip->image();
  if (!vit_ && !conv_)
    fail<ConfigError>("{}: {}: neither a DINOv2 network nor a ConvEncoder; features are read from these", key, folder);
  const int64_t reads = vit_ ? vit_->config().num_channels : conv_->config().in_channels;
  if (image_channels != reads && image_channels != 1)
    fail<ConfigError>("{}: {} reads images of {} channels, this run's have {}", key, folder, reads, image_channels);
  module_->requires_grad(false);
  module_->train(false);
  if (conv_) {  // reads pictures of one size: windows are resized to it
    const int64_t own = conv_->config().image_size;
    if (side != 0 && side != own)
      fail<ConfigError>("{}: {} reads images of {} x {}, its side is {}; leave it at 0", key, folder, own, own, side);
    options_.side = own;
  }
  if (options_.blocks.empty()) {
    if (vit_) options_.blocks = spread_blocks(vit_->config().num_hidden_layers);
    for (int64_t i = 0; conv_ && i < static_cast<int64_t>(conv_->config().channels.size()); ++i) options_.blocks.push_back(i);
  }
  channels();  // ConfigError for a block the network does not have
}

std::vector<Tensor> GanFeatures::operator()(const Tensor& images) const {
  if (conv_ && images.size(2) != images.size(3))
    fail<ConfigError>("discriminator: a ConvEncoder reads square pictures, these are {} x {}; set a crop, or take a DINOv2 network",
                      images.size(2), images.size(3));
  return vit_ ? models::feature_taps(*vit_, images, options_) : models::feature_taps(*conv_, images, options_);
}

std::vector<int64_t> GanFeatures::channels() const {
  return vit_ ? models::tap_channels(*vit_, options_) : models::tap_channels(*conv_, options_);
}

void GanFeatures::to(at::Device device, at::ScalarType dtype) {
  module_->to(device);
  module_->to(dtype);
}

double GanFeatures::forward_flops(int64_t height, int64_t width) const {
  if (options_.side > 0) {
    const double scale = static_cast<double>(options_.side) / static_cast<double>(std::min(height, width));
    height = std::llround(scale * static_cast<double>(height)), width = std::llround(scale * static_cast<double>(width));
  }
  return vit_ ? vit_flops(vit_->config(), height, width, *std::max_element(options_.blocks.begin(), options_.blocks.end()))
              : conv_flops(conv_->config(), height, width);
}

Tensor GanFeatures::sums() const {
  const NoGrad no_grad;
  std::vector<Tensor> sums;
  for (const auto& [name, tensor] : module_->parameters()) sums.push_back(tensor.to(at::kDouble).sum().to(at::kCPU));
  return at::stack(sums);
}

std::string GanFeatures::description() const {
  return fmt::format("{} ({} parameters), {} {}", vit_ ? "DINOv2" : "ConvEncoder", module_->parameter_count(), vit_ ? "blocks" : "stages",
                     fmt::join(options_.blocks, ", "));
}

}  // namespace fewstep
