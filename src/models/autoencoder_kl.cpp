#include "src/models/autoencoder_kl.h"

#include "src/models/autoencoder_config.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::models {
namespace {

constexpr double kLogvarMin = -30, kLogvarMax = 20;
constexpr nn::Conv2dOptions kOneByOne{.kernel = 1, .padding = 0};

AutoencoderShape kl_shape(const AutoencoderKlConfig& c) {
  const int64_t fold = c.patch_size * c.patch_size;
  return {.in_channels = c.in_channels * fold,
          .out_channels = c.out_channels * fold,
          .block_out_channels = c.block_out_channels,
          .layers_per_block = c.layers_per_block,
          .latent_channels = c.latent_channels,
          .norm_num_groups = c.norm_num_groups,
          .double_z = true,
          .mid_block_add_attention = c.mid_block_add_attention};
}

// What is read and written alike, beside what both autoencoders have.
template <class Fields, class Config>
void kl_fields(const Fields& f, Config& c) {
  f.field("force_upcast", c.force_upcast);
  f.field("use_quant_conv", c.use_quant_conv);
  f.field("use_post_quant_conv", c.use_post_quant_conv);
}

Json or_null(const std::vector<double>& values) { return values.empty() ? Json(nullptr) : Json(values); }

}  // namespace

AutoencoderKlConfig AutoencoderKlConfig::from_json(const Json& json, std::string_view where) {
  const JsonFields fields(json, where);
  AutoencoderKlConfig c;
  read_autoencoder(fields, c);
  kl_fields(fields, c);
  fields.get("shift_factor", c.shift_factor);
  fields.get("latents_mean", c.latents_mean);
  fields.get("latents_std", c.latents_std);
  c.validate(where);
  return c;
}

Json AutoencoderKlConfig::to_json() const {
  Json json = write_autoencoder("AutoencoderKL", *this);
  kl_fields(JsonWriter(json), *this);
  json["shift_factor"] = shift_factor != 0 ? Json(shift_factor) : Json(nullptr);
  json["latents_mean"] = or_null(latents_mean);
  json["latents_std"] = or_null(latents_std);
  return ordered_autoencoder(json, *this);
}

void AutoencoderKlConfig::validate(std::string_view where) const {
  validate_autoencoder(*this, where);
  if (!(scaling_factor > 0) || !std::isfinite(scaling_factor))
    fail<ConfigError>("{}: scaling_factor must be positive, is {}", where, scaling_factor);
  for (const auto& [key, values] : {std::pair("latents_mean", &latents_mean), std::pair("latents_std", &latents_std)})
    if (!values->empty() && static_cast<int64_t>(values->size()) != latent_channels)
      fail<ConfigError>("{}: {} has {} values, latent_channels is {}", where, key, values->size(), latent_channels);
  if (latents_mean.empty() != latents_std.empty())
    fail<ConfigError>("{}: latents_mean and latents_std belong together: give both or none", where);
  for (const double std : latents_std)
    if (!(std > 0)) fail<ConfigError>("{}: latents_std must be positive, has {}", where, std);
}

void describe(config::Visitor& v, AutoencoderKlConfig& c) {
  v.field("block_out_channels", c.block_out_channels, "width of each stage; a factor 2 in resolution between neighbours", config::kAtLeastOne);
  v.field("layers_per_block", c.layers_per_block, "residual blocks per encoder stage (the decoder has one more)", config::kAtLeastOne);
  v.field("latent_channels", c.latent_channels, "channels of the latents", config::kAtLeastOne);
  v.field("norm_num_groups", c.norm_num_groups, "groups of every GroupNorm; divides all widths", config::kAtLeastOne);
  v.field("mid_block_add_attention", c.mid_block_add_attention, "self-attention at the latents' resolution");
  v.field("use_quant_conv", c.use_quant_conv, "1 x 1 convolution behind the encoder");
  v.field("use_post_quant_conv", c.use_post_quant_conv, "1 x 1 convolution before the decoder");
  v.field("patch_size", c.patch_size, "pixels folded into channels before the first convolution (1: diffusers' form)", config::kAtLeastOne);
  v.check(!c.block_out_channels.empty(), "block_out_channels", "needs at least one stage");
  for (const int64_t width : c.block_out_channels)
    if (c.norm_num_groups > 0) v.check(width % c.norm_num_groups == 0, "block_out_channels", "each width must be a multiple of norm_num_groups");
}

Tensor Posterior::std() const { return at::exp(0.5 * logvar); }
Tensor Posterior::sample(const Tensor& noise) const { return mean + std() * noise; }
Tensor Posterior::kl() const { return 0.5 * (mean.square() + at::exp(logvar) - 1.0 - logvar).sum({1, 2, 3}); }

AutoencoderKL::AutoencoderKL(const AutoencoderKlConfig& config)
    : config_(config), encoder_(kl_shape(config)), decoder_(kl_shape(config)) {
  config_.validate("AutoencoderKL");
  const int64_t z = config.latent_channels;
  child("encoder", encoder_);
  child("decoder", decoder_);
  if (config.use_quant_conv) child("quant_conv", quant_conv_.emplace(2 * z, 2 * z, kOneByOne));
  if (config.use_post_quant_conv) child("post_quant_conv", post_quant_conv_.emplace(z, z, kOneByOne));
}

Posterior AutoencoderKL::encode(const Tensor& images) const {
  const auto [B, C, H, W] = dims<4>(images);
  if (C != config_.in_channels || H % config_.factor() != 0 || W % config_.factor() != 0)
    fail<Error>("AutoencoderKL: images [{}, {}, {}, {}]: expected {} channels and sides that are multiples of {}", B, C, H, W,
                config_.in_channels, config_.factor());
  Tensor moments = encoder_(config_.patch_size > 1 ? at::pixel_unshuffle(images, config_.patch_size) : images);
  if (quant_conv_) moments = (*quant_conv_)(moments);  // [B, 2 Z, h, w]
  const std::vector<Tensor> halves = moments.chunk(2, 1);
  return {.mean = halves[0], .logvar = halves[1].clamp(kLogvarMin, kLogvarMax)};
}

Tensor AutoencoderKL::decode(const Tensor& latents) const {
  expect_shape(latents, {-1, config_.latent_channels, -1, -1}, "latents of AutoencoderKL");
  const Tensor folded = decoder_(post_quant_conv_ ? (*post_quant_conv_)(latents) : latents);
  return config_.patch_size > 1 ? at::pixel_shuffle(folded, config_.patch_size) : folded;
}

Tensor AutoencoderKL::channelwise(const std::vector<double>& values, const Tensor& like) const {
  return at::tensor(values, at::kDouble).to(like.device(), like.scalar_type()).view({1, -1, 1, 1});
}

Tensor AutoencoderKL::scale(const Tensor& raw) const {
  if (config_.latents_std.empty()) return (raw - config_.shift_factor) * config_.scaling_factor;
  return (raw - channelwise(config_.latents_mean, raw)) * (config_.scaling_factor / channelwise(config_.latents_std, raw));
}

Tensor AutoencoderKL::unscale(const Tensor& scaled) const {
  if (config_.latents_std.empty()) return scaled / config_.scaling_factor + config_.shift_factor;
  return scaled * (channelwise(config_.latents_std, scaled) / config_.scaling_factor) + channelwise(config_.latents_mean, scaled);
}

void AutoencoderKL::set_recompute(bool on) { encoder_.set_recompute(on), decoder_.set_recompute(on); }

}  // namespace fewstep::models
