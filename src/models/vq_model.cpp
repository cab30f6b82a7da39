#include "src/models/vq_model.h"

#include "src/models/autoencoder_config.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::models {
namespace {

AutoencoderShape shape_of(const VqConfig& c) {
  const int64_t fold = c.patch_size * c.patch_size;
  return {.in_channels = c.in_channels * fold,
          .out_channels = c.out_channels * fold,
          .block_out_channels = c.block_out_channels,
          .layers_per_block = c.layers_per_block,
          .latent_channels = c.latent_channels,
          .norm_num_groups = c.norm_num_groups,
          .mid_block_add_attention = c.mid_block_add_attention};
}

// What is read and written alike, beside what both autoencoders have.
template <class Fields, class Config>
void vq_fields(const Fields& f, Config& c) {
  f.field("num_vq_embeddings", c.num_vq_embeddings);
  f.field("lookup_from_codebook", c.lookup_from_codebook);
}

constexpr nn::Conv2dOptions kPointwise{.kernel = 1, .padding = 0};

}  // namespace

VqConfig VqConfig::from_json(const Json& json, std::string_view where) {
  const JsonFields fields(json, where);
  VqConfig c;
  fields.only("norm_type", "group");
  read_autoencoder(fields, c);
  vq_fields(fields, c);
  fields.get("vq_embed_dim", c.vq_embed_dim);
  c.validate(where);
  return c;
}

Json VqConfig::to_json() const {
  Json json = write_autoencoder("VQModel", *this);
  vq_fields(JsonWriter(json), *this);
  json["force_upcast"] = false;
  json["norm_type"] = "group";
  json["vq_embed_dim"] = embed_dim();
  return ordered_autoencoder(json, *this);
}

void VqConfig::validate(std::string_view where) const {
  validate_autoencoder(*this, where);
  if (num_vq_embeddings < 1) fail<ConfigError>("{}: num_vq_embeddings must be at least 1, is {}", where, num_vq_embeddings);
}

void describe(config::Visitor& v, VqConfig& c) {
  v.field("block_out_channels", c.block_out_channels, "width of each stage; a factor 2 in resolution between neighbours", config::kAtLeastOne);
  v.field("layers_per_block", c.layers_per_block, "residual blocks per encoder stage (the decoder has one more)", config::kAtLeastOne);
  v.field("latent_channels", c.latent_channels, "channels between the networks and the 1 x 1 (post_)quant_conv", config::kAtLeastOne);
  v.field("num_vq_embeddings", c.num_vq_embeddings, "codebook size", config::kAtLeastOne);
  v.field("vq_embed_dim", c.vq_embed_dim, "dimension of a code; 0: latent_channels", config::kNonNegative);
  v.field("norm_num_groups", c.norm_num_groups, "groups of every GroupNorm; divides all widths", config::kAtLeastOne);
  v.field("mid_block_add_attention", c.mid_block_add_attention, "self-attention at the code grid's resolution");
  v.field("patch_size", c.patch_size, "pixels folded into channels before the first convolution (1: diffusers' form)", config::kAtLeastOne);
  v.check(!c.block_out_channels.empty(), "block_out_channels", "needs at least one stage");
  for (const int64_t width : c.block_out_channels)
    if (c.norm_num_groups > 0) v.check(width % c.norm_num_groups == 0, "block_out_channels", "each width must be a multiple of norm_num_groups");
}

VQModel::Codebook::Table::Table(int64_t count, int64_t dim) {
  buffer("weight", weight, {count, dim}, nn::build_options().dtype().toScalarType());
}

void VQModel::Codebook::Table::reset(at::Generator& generator) {
  nn::init_uniform(weight, 1.0 / static_cast<double>(weight.size(0)), generator);
}

VQModel::Codebook::Codebook(int64_t count, int64_t dim) : embedding(count, dim) { child("embedding", embedding); }

VQModel::VQModel(const VqConfig& config)
    : config_(config),
      encoder_(shape_of(config)),
      quant_conv_(config.latent_channels, config.embed_dim(), kPointwise),
      quantize_(config.num_vq_embeddings, config.embed_dim()),
      post_quant_conv_(config.embed_dim(), config.latent_channels, kPointwise),
      decoder_(shape_of(config)) {
  config_.validate("VQModel");
  child("encoder", encoder_);
  child("quant_conv", quant_conv_);
  child("quantize", quantize_);
  child("post_quant_conv", post_quant_conv_);
  child("decoder", decoder_);
}

Tensor VQModel::encode(const Tensor& images) const {
  const auto [B, C, H, W] = dims<4>(images);
  if (C != config_.in_channels || H % config_.factor() != 0 || W % config_.factor() != 0)
    fail<Error>("VQModel: images [{}, {}, {}, {}]: expected {} channels and sides that are multiples of {}", B, C, H, W,
                config_.in_channels, config_.factor());
  return quant_conv_(encoder_(config_.patch_size > 1 ? at::pixel_unshuffle(images, config_.patch_size) : images));
}

// argmin_k |z - e_k|^2 = argmin_k |e_k|^2 - 2 z.e_k: one matrix product, no [N, K, D] intermediate.
Quantized VQModel::quantize(const Tensor& latents) const {
  const NoGrad no_grad;
  const auto [B, D, H, W] = dims<4>(latents);
  const Tensor z = latents.permute({0, 2, 3, 1}).reshape({-1, D});
  const Tensor& e = quantize_.embedding.weight;
  const Tensor indices = at::addmm(e.square().sum(1).unsqueeze(0), z, e.t(), 1.0, -2.0).argmin(1).view({B, H, W});
  return {indices, codes(indices)};
}

Tensor VQModel::codes(const Tensor& indices) const {
  return at::embedding(quantize_.embedding.weight, indices).permute({0, 3, 1, 2}).contiguous();
}

Tensor VQModel::decode(const Tensor& latents) const {
  const Tensor folded = decoder_(post_quant_conv_(latents));
  return config_.patch_size > 1 ? at::pixel_shuffle(folded, config_.patch_size) : folded;
}

Tensor VQModel::decode_indices(const Tensor& indices) const { return decode(codes(indices)); }

}  // namespace fewstep::models
