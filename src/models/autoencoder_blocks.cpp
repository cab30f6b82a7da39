#include "src/models/autoencoder_blocks.h"

#include "src/nn/attention.h"
#include "src/nn/recompute.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::models {
namespace {

constexpr double kEps = 1e-6;  // of every GroupNorm in diffusers' autoencoders

nn::Conv2d* shortcut(std::optional<nn::Conv2d>& slot, int64_t in_channels, int64_t out_channels) {
  if (in_channels == out_channels) return nullptr;
  return &slot.emplace(in_channels, out_channels, nn::Conv2dOptions{.kernel = 1, .padding = 0});
}

template <class Part>
Tensor run_part(const Part& part, const Tensor& x, bool recompute) {
  if (!recompute) return part(x);
  return nn::recompute(part, [&part](const nn::Tensors& in) { return nn::Tensors{part(in[0])}; }, {x})[0];
}

void name_blocks(nn::Module& whole, const std::string& prefix) {
  whole.visit([&](const std::string& name, nn::Module& module) {
    if (auto* block = dynamic_cast<ResnetBlock*>(&module)) block->set_name(prefix + name);
  });
}

}  // namespace

ResnetBlock::ResnetBlock(int64_t in_channels, int64_t out_channels, int64_t groups)
    : norm1_(groups, in_channels, kEps), norm2_(groups, out_channels, kEps), conv1_(in_channels, out_channels), conv2_(out_channels, out_channels) {
  child("norm1", norm1_);
  child("conv1", conv1_);
  child("norm2", norm2_);
  child("conv2", conv2_);
  if (nn::Conv2d* conv = shortcut(conv_shortcut_, in_channels, out_channels)) child("conv_shortcut", *conv);
}

Tensor ResnetBlock::operator()(const Tensor& x) const {
  const Tensor h = nn::tap(tap_conv1_, conv1_(at::silu(norm1_(x))));
  const Tensor residual = nn::tap(tap_conv2_, conv2_(at::silu(norm2_(h))));
  return nn::tap(tap_out_, (conv_shortcut_ ? (*conv_shortcut_)(x) : x) + residual);
}

SpatialAttention::SpatialAttention(int64_t channels, int64_t groups)
    : group_norm_(groups, channels, kEps), to_q_(channels, channels), to_k_(channels, channels), to_v_(channels, channels) {
  child("group_norm", group_norm_);
  child("to_q", to_q_);
  child("to_k", to_k_);
  child("to_v", to_v_);
  to_out_.add(channels, channels);  // "to_out.0"; diffusers' "to_out.1" is a dropout
  child("to_out", to_out_);
}

Tensor SpatialAttention::operator()(const Tensor& x) const {
  const auto [B, C, H, W] = dims<4>(x);
  const Tensor tokens = group_norm_(x).flatten(2).transpose(1, 2);  // [B, H W, C]
  const Tensor y = nn::attention(to_q_(tokens).unsqueeze(1), to_k_(tokens).unsqueeze(1), to_v_(tokens).unsqueeze(1));
  return x + to_out_[0](y.squeeze(1)).transpose(1, 2).reshape({B, C, H, W});
}

MidBlock::MidBlock(int64_t channels, int64_t groups, bool attention) {
  if (attention) attentions_.add(channels, groups);
  child("attentions", attentions_);
  for (int i = 0; i < 2; ++i) resnets_.add(channels, channels, groups);
  child("resnets", resnets_);
}

Tensor MidBlock::operator()(Tensor x) const {
  x = resnets_[0](x);
  if (attentions_.size() > 0) x = attentions_[0](x);
  return resnets_[1](x);
}

AutoencoderStage::Sampler::Sampler(int64_t channels, Resample kind)
    : conv(channels, channels, kind == Resample::down ? nn::Conv2dOptions{.stride = 2, .padding = 0} : nn::Conv2dOptions{}) {
  child("conv", conv);
}

AutoencoderStage::AutoencoderStage(int64_t in_channels, int64_t out_channels, int64_t layers, int64_t groups, Resample resample)
    : resample_(resample) {
  for (int64_t i = 0; i < layers; ++i) resnets_.add(i == 0 ? in_channels : out_channels, out_channels, groups);
  child("resnets", resnets_);
  if (resample == Resample::none) return;
  samplers_.add(out_channels, resample);
  child(resample == Resample::down ? "downsamplers" : "upsamplers", samplers_);
}

Tensor AutoencoderStage::operator()(Tensor x) const {
  for (const auto& block : resnets_) x = (*block)(x);
  // Padding on the right and below only, as the autoencoders of latent diffusion were trained.
  if (resample_ == Resample::down) x = samplers_[0].conv(at::constant_pad_nd(x, {0, 1, 0, 1}));
  if (resample_ == Resample::up) x = samplers_[0].conv(at::upsample_nearest2d(x, {x.size(2) * 2, x.size(3) * 2}));
  return x;
}

Encoder::Encoder(const AutoencoderShape& s)
    : conv_in_(s.in_channels, s.block_out_channels.front()),
      conv_norm_out_(s.norm_num_groups, s.block_out_channels.back(), kEps),
      conv_out_(s.block_out_channels.back(), s.double_z ? 2 * s.latent_channels : s.latent_channels) {
  child("conv_in", conv_in_);
  const auto& widths = s.block_out_channels;
  for (size_t i = 0; i < widths.size(); ++i)
    down_blocks_.add(i == 0 ? widths[0] : widths[i - 1], widths[i], s.layers_per_block, s.norm_num_groups,
                     i + 1 < widths.size() ? Resample::down : Resample::none);
  child("down_blocks", down_blocks_);
  mid_block_ = std::make_unique<MidBlock>(widths.back(), s.norm_num_groups, s.mid_block_add_attention);
  child("mid_block", *mid_block_);
  child("conv_norm_out", conv_norm_out_);
  child("conv_out", conv_out_);
  name_blocks(*this, "encoder.");
}

Tensor Encoder::operator()(const Tensor& images) const {
  Tensor x = conv_in_(images);
  for (const auto& stage : down_blocks_) x = run_part(*stage, x, recompute_);
  return conv_out_(at::silu(conv_norm_out_(run_part(*mid_block_, x, recompute_))));
}

Decoder::Decoder(const AutoencoderShape& s)
    : conv_in_(s.latent_channels, s.block_out_channels.back()),
      conv_norm_out_(s.norm_num_groups, s.block_out_channels.front(), kEps),
      conv_out_(s.block_out_channels.front(), s.out_channels) {
  child("conv_in", conv_in_);
  mid_block_ = std::make_unique<MidBlock>(s.block_out_channels.back(), s.norm_num_groups, s.mid_block_add_attention);
  child("mid_block", *mid_block_);
  const std::vector<int64_t> widths(s.block_out_channels.rbegin(), s.block_out_channels.rend());
  for (size_t i = 0; i < widths.size(); ++i)  // one residual block more than in the encoder
    up_blocks_.add(i == 0 ? widths[0] : widths[i - 1], widths[i], s.layers_per_block + 1, s.norm_num_groups,
                   i + 1 < widths.size() ? Resample::up : Resample::none);
  child("up_blocks", up_blocks_);
  child("conv_norm_out", conv_norm_out_);
  child("conv_out", conv_out_);
  name_blocks(*this, "decoder.");
}

Tensor Decoder::operator()(const Tensor& latents) const {
  Tensor x = run_part(*mid_block_, conv_in_(latents), recompute_);
  for (const auto& stage : up_blocks_) x = run_part(*stage, x, recompute_);
  return conv_out_(at::silu(conv_norm_out_(x)));
}

}  // namespace fewstep::models
