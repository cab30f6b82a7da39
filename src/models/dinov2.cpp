#include "src/models/dinov2.h"

#include <nlohmann/json.hpp>

#include "src/models/json_fields.h"
#include "src/nn/attention.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::models {
// Named: a unity build would give members of anonymous types to a class with linkage.
namespace dinov2_parts {

constexpr double kInitialRange = 0.02;

struct SelfAttention : nn::Module {
  explicit SelfAttention(const Dinov2Config& c)
      : query(c.hidden_size, c.hidden_size, c.qkv_bias),
        key(c.hidden_size, c.hidden_size, c.qkv_bias),
        value(c.hidden_size, c.hidden_size, c.qkv_bias) {
    child("query", query), child("key", key), child("value", value);
  }
  nn::Linear query, key, value;
};

struct Output : nn::Module {
  explicit Output(int64_t width) : dense(width, width) { child("dense", dense); }
  nn::Linear dense;
};

struct Attention : nn::Module {
  explicit Attention(const Dinov2Config& c) : heads(c.num_attention_heads), attention(c), output(c.hidden_size) {
    child("attention", attention), child("output", output);
  }
  Tensor operator()(const Tensor& x) const {
    const auto split = [&](const Tensor& y) { return split_heads(y, heads); };
    return output.dense(
        merge_heads(nn::attention(split(attention.query(x)), split(attention.key(x)), split(attention.value(x)))));
  }
  int64_t heads;
  SelfAttention attention;
  Output output;
};

struct LayerScale : nn::Module {
  explicit LayerScale(int64_t width) { parameter("lambda1", lambda1, {width}); }
  void reset(at::Generator&) override {
    const NoGrad no_grad;
    lambda1.fill_(1.0);
  }
  Tensor lambda1;
};

struct Mlp : nn::Module {
  Mlp(int64_t width, int64_t inner) : fc1(width, inner), fc2(inner, width) { child("fc1", fc1), child("fc2", fc2); }
  Tensor operator()(const Tensor& x) const { return fc2(at::gelu(fc1(x))); }
  nn::Linear fc1, fc2;
};

// Two thirds of the width, rounded up to a multiple of 8: as many parameters as the plain MLP.
struct SwigluMlp : nn::Module {
  SwigluMlp(int64_t width, int64_t inner)
      : hidden((inner * 2 / 3 + 7) / 8 * 8), weights_in(width, 2 * hidden), weights_out(hidden, width) {
    child("weights_in", weights_in), child("weights_out", weights_out);
  }
  Tensor operator()(const Tensor& x) const {
    const auto parts = weights_in(x).chunk(2, -1);
    return weights_out(at::silu(parts[0]) * parts[1]);
  }
  int64_t hidden;
  nn::Linear weights_in, weights_out;
};

}  // namespace dinov2_parts
using namespace dinov2_parts;

struct Dinov2Layer : nn::Module {
  explicit Dinov2Layer(const Dinov2Config& c)
      : norm1(c.hidden_size, c.layer_norm_eps),
        attention(c),
        layer_scale1(c.hidden_size),
        norm2(c.hidden_size, c.layer_norm_eps),
        layer_scale2(c.hidden_size) {
    child("norm1", norm1), child("attention", attention), child("layer_scale1", layer_scale1), child("norm2", norm2);
    if (c.use_swiglu_ffn)
      child("mlp", *(swiglu = std::make_unique<SwigluMlp>(c.hidden_size, c.hidden_size * c.mlp_ratio)));
    else
      child("mlp", *(mlp = std::make_unique<Mlp>(c.hidden_size, c.hidden_size * c.mlp_ratio)));
    child("layer_scale2", layer_scale2);
  }
  Tensor operator()(const Tensor& x) const {
    const Tensor h = x + attention(norm1(x)) * layer_scale1.lambda1;
    const Tensor y = norm2(h);
    return h + (swiglu ? (*swiglu)(y) : (*mlp)(y)) * layer_scale2.lambda1;
  }
  nn::LayerNorm norm1;
  Attention attention;
  LayerScale layer_scale1;
  nn::LayerNorm norm2;
  std::unique_ptr<Mlp> mlp;
  std::unique_ptr<SwigluMlp> swiglu;
  LayerScale layer_scale2;
};

struct Dinov2Model::Encoder : nn::Module {
  explicit Encoder(const Dinov2Config& c) {
    for (int64_t i = 0; i < c.num_hidden_layers; ++i) layers.add(c);
    child("layer", layers);
  }
  nn::ModuleList<Dinov2Layer> layers;
};

Dinov2Config Dinov2Config::from_json(const Json& json, std::string_view where) {
  const JsonFields fields(json, where);
  Dinov2Config c;
  fields.get("hidden_size", c.hidden_size);
  fields.get("num_hidden_layers", c.num_hidden_layers);
  fields.get("num_attention_heads", c.num_attention_heads);
  fields.get("mlp_ratio", c.mlp_ratio);
  fields.get("image_size", c.image_size);
  fields.get("patch_size", c.patch_size);
  fields.get("num_channels", c.num_channels);
  fields.get("layer_norm_eps", c.layer_norm_eps);
  fields.get("qkv_bias", c.qkv_bias);
  fields.get("use_swiglu_ffn", c.use_swiglu_ffn);
  fields.only("hidden_act", "gelu");
  if (c.num_attention_heads < 1 || c.hidden_size < 1 || c.hidden_size % c.num_attention_heads != 0)
    fail<ConfigError>("{}: hidden_size {} is not a multiple of num_attention_heads {}", where, c.hidden_size,
                      c.num_attention_heads);
  if (c.patch_size < 1 || c.image_size < c.patch_size || c.num_hidden_layers < 1 || c.mlp_ratio < 1 ||
      c.num_channels < 1)
    fail<ConfigError>("{}: patch_size {}, image_size {}, num_hidden_layers {} do not make a network", where,
                      c.patch_size, c.image_size, c.num_hidden_layers);
  return c;
}

Json Dinov2Config::to_json() const {
  return {{"architectures", {"Dinov2Model"}},
          {"model_type", "dinov2"},
          {"hidden_size", hidden_size},
          {"num_hidden_layers", num_hidden_layers},
          {"mlp_ratio", mlp_ratio},
          {"num_attention_heads", num_attention_heads},
          {"image_size", image_size},
          {"patch_size", patch_size},
          {"num_channels", num_channels},
          {"layer_norm_eps", layer_norm_eps},
          {"qkv_bias", qkv_bias},
          {"use_swiglu_ffn", use_swiglu_ffn},
          {"hidden_act", "gelu"}};
}

Dinov2Model::Embeddings::Patches::Patches(const Dinov2Config& c)
    : projection(c.num_channels, c.hidden_size, {.kernel = c.patch_size, .stride = c.patch_size, .padding = 0}) {
  child("projection", projection);
}

Dinov2Model::Embeddings::Embeddings(const Dinov2Config& c) : patch_embeddings(c) {
  const int64_t side = c.image_size / c.patch_size;
  parameter("cls_token", cls_token, {1, 1, c.hidden_size});
  parameter("mask_token", mask_token, {1, c.hidden_size});
  parameter("position_embeddings", position_embeddings, {1, 1 + side * side, c.hidden_size});
  child("patch_embeddings", patch_embeddings);
}

Dinov2Model::Dinov2Model(const Dinov2Config& config)
    : config_(config),
      embeddings_(config),
      encoder_(std::make_unique<Encoder>(config)),
      layernorm_(config.hidden_size, config.layer_norm_eps) {
  child("embeddings", embeddings_), child("encoder", *encoder_), child("layernorm", layernorm_);
}
Dinov2Model::~Dinov2Model() = default;

void Dinov2Model::reset(at::Generator& generator) {
  const NoGrad no_grad;
  nn::init_normal(embeddings_.cls_token, kInitialRange, generator);
  nn::init_normal(embeddings_.position_embeddings, kInitialRange, generator);
  embeddings_.mask_token.zero_();
}

Tensor Dinov2Model::position_embedding(int64_t height, int64_t width) const {
  const Tensor& table = embeddings_.position_embeddings;
  const int64_t rows = height / config_.patch_size, columns = width / config_.patch_size;
  if (rows * columns == table.size(1) - 1 && height == width) return table;
  const int64_t side = static_cast<int64_t>(std::lround(std::sqrt(static_cast<double>(table.size(1) - 1))));
  const Tensor grid = table.narrow(1, 1, side * side).view({1, side, side, config_.hidden_size}).permute({0, 3, 1, 2});
  const Tensor resized =
      at::upsample_bicubic2d(grid.to(at::kFloat), {rows, columns}, /*align_corners=*/false).to(table.scalar_type());
  return at::cat(
      {table.narrow(1, 0, 1), resized.permute({0, 2, 3, 1}).reshape({1, rows * columns, config_.hidden_size})}, 1);
}

Dinov2Output Dinov2Model::operator()(const Tensor& images, int64_t layers) const {
  const auto [B, C, H, W] = dims<4>(images);
  if (C != config_.num_channels || H % config_.patch_size != 0 || W % config_.patch_size != 0 || H == 0 || W == 0)
    fail<Error>("DINOv2: images [{}, {}, {}, {}]; it reads {} channels and sides that are multiples of {}", B, C, H, W,
                config_.num_channels, config_.patch_size);
  const Tensor patches = embeddings_.patch_embeddings.projection(images).flatten(2).transpose(1, 2);  // [B, N, D]
  Dinov2Output out;
  out.hidden_states.push_back(at::cat({embeddings_.cls_token.expand({B, 1, -1}), patches}, 1) +
                              position_embedding(H, W));
  const size_t count = layers < 0 ? encoder_->layers.size() : static_cast<size_t>(layers);
  FEW_CHECK(count <= encoder_->layers.size(), "DINOv2 has {} blocks, {} asked for", encoder_->layers.size(), count);
  for (size_t i = 0; i < count; ++i) out.hidden_states.push_back(encoder_->layers[i](out.hidden_states.back()));
  out.last_hidden_state = layernorm_(out.hidden_states.back());
  return out;
}

Tensor Dinov2Output::pooled() const { return last_hidden_state.select(1, 0); }

}  // namespace fewstep::models
