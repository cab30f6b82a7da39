#include "src/models/clip.h"

#include <nlohmann/json.hpp>

#include "src/base/table.h"
#include "src/models/json_fields.h"
#include "src/nn/attention.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::models {

struct ClipLayer : nn::Module {
  struct Attention : nn::Module {
    Attention(int64_t width, int64_t heads_)
        : heads(heads_), q_proj(width, width), k_proj(width, width), v_proj(width, width), out_proj(width, width) {
      child("k_proj", k_proj), child("v_proj", v_proj), child("q_proj", q_proj), child("out_proj", out_proj);
    }
    Tensor operator()(const Tensor& x, bool causal) const {
      const auto split = [&](const Tensor& y) { return split_heads(y, heads); };
      return out_proj(merge_heads(nn::attention(split(q_proj(x)), split(k_proj(x)), split(v_proj(x)), {}, causal)));
    }
    int64_t heads;
    nn::Linear q_proj, k_proj, v_proj, out_proj;
  };
  struct Mlp : nn::Module {
    Mlp(int64_t width, int64_t inner, ClipActivation activation_)
        : activation(activation_), fc1(width, inner), fc2(inner, width) {
      child("fc1", fc1), child("fc2", fc2);
    }
    Tensor operator()(const Tensor& x) const {
      const Tensor y = fc1(x);
      return fc2(activation == ClipActivation::gelu ? at::gelu(y) : y * at::sigmoid(1.702 * y));
    }
    ClipActivation activation;
    nn::Linear fc1, fc2;
  };
  explicit ClipLayer(const ClipTowerConfig& c)
      : self_attn(c.hidden_size, c.num_attention_heads),
        layer_norm1(c.hidden_size, c.layer_norm_eps),
        mlp(c.hidden_size, c.intermediate_size, c.activation),
        layer_norm2(c.hidden_size, c.layer_norm_eps) {
    child("self_attn", self_attn), child("layer_norm1", layer_norm1), child("mlp", mlp),
        child("layer_norm2", layer_norm2);
  }
  Tensor operator()(const Tensor& x, bool causal) const {
    const Tensor h = x + self_attn(layer_norm1(x), causal);
    return h + mlp(layer_norm2(h));
  }
  Attention self_attn;
  nn::LayerNorm layer_norm1;
  Mlp mlp;
  nn::LayerNorm layer_norm2;
};

namespace {

struct ActivationName {
  std::string_view name;
  ClipActivation activation;
};
constexpr ActivationName kActivations[] = {{"quick_gelu", ClipActivation::quick_gelu}, {"gelu", ClipActivation::gelu}};

void read_tower(const JsonFields& fields, ClipTowerConfig& c) {
  fields.get("hidden_size", c.hidden_size);
  fields.get("intermediate_size", c.intermediate_size);
  fields.get("num_hidden_layers", c.num_hidden_layers);
  fields.get("num_attention_heads", c.num_attention_heads);
  fields.get("layer_norm_eps", c.layer_norm_eps);
  std::string activation(kActivations[static_cast<size_t>(c.activation)].name);
  fields.get("hidden_act", activation);
  c.activation = find_entry(std::span<const ActivationName>(kActivations), activation,
                            fmt::format("hidden_act in {}", fields.where()))
                     .activation;
  if (c.hidden_size < 1 || c.num_attention_heads < 1 || c.hidden_size % c.num_attention_heads != 0)
    fail<ConfigError>("{}: hidden_size {} is not a multiple of num_attention_heads {}", fields.where(), c.hidden_size,
                      c.num_attention_heads);
  if (c.intermediate_size < 1 || c.num_hidden_layers < 0)
    fail<ConfigError>("{}: intermediate_size and num_hidden_layers must be positive", fields.where());
}

Json tower_json(const ClipTowerConfig& c) {
  return {{"hidden_size", c.hidden_size},
          {"intermediate_size", c.intermediate_size},
          {"num_hidden_layers", c.num_hidden_layers},
          {"num_attention_heads", c.num_attention_heads},
          {"layer_norm_eps", c.layer_norm_eps},
          {"hidden_act", kActivations[static_cast<size_t>(c.activation)].name}};
}

}  // namespace

ClipTextConfig ClipTextConfig::from_json(const Json& json, std::string_view where) {
  const JsonFields fields(json, where);
  ClipTextConfig c;
  read_tower(fields, c);
  fields.get("vocab_size", c.vocab_size);
  fields.get("max_position_embeddings", c.max_position_embeddings);
  fields.get("eos_token_id", c.eos_token_id);
  fields.get("projection_dim", c.projection_dim);
  if (const Json* names = fields.find("architectures"))
    c.projection = names->is_array() && !names->empty() && names->front() == "CLIPTextModelWithProjection";
  if (c.vocab_size < 1 || c.max_position_embeddings < 1 || c.projection_dim < 1)
    fail<ConfigError>("{}: vocab_size, max_position_embeddings and projection_dim must be positive", where);
  return c;
}

Json ClipTextConfig::to_json() const {
  Json json = tower_json(*this);
  json["architectures"] = {projection ? "CLIPTextModelWithProjection" : "CLIPTextModel"};
  json["model_type"] = "clip_text_model";
  json["vocab_size"] = vocab_size, json["max_position_embeddings"] = max_position_embeddings;
  json["eos_token_id"] = eos_token_id, json["projection_dim"] = projection_dim;
  return json;
}

ClipVisionConfig ClipVisionConfig::from_json(const Json& json, std::string_view where) {
  const JsonFields fields(json, where);
  ClipVisionConfig c;
  read_tower(fields, c);
  fields.get("image_size", c.image_size);
  fields.get("patch_size", c.patch_size);
  fields.get("num_channels", c.num_channels);
  if (c.patch_size < 1 || c.image_size < c.patch_size || c.image_size % c.patch_size != 0 || c.num_channels < 1)
    fail<ConfigError>("{}: image_size {} is not a multiple of patch_size {}", where, c.image_size, c.patch_size);
  return c;
}

Json ClipVisionConfig::to_json() const {
  Json json = tower_json(*this);
  json["model_type"] = "clip_vision_model";
  json["image_size"] = image_size, json["patch_size"] = patch_size, json["num_channels"] = num_channels;
  return json;
}

// Older files call the towers text_config_dict and vision_config_dict as well; text_config is always there.
ClipConfig ClipConfig::from_json(const Json& json, std::string_view where) {
  const JsonFields fields(json, where);
  ClipConfig c;
  if (const Json* text = fields.find("text_config"))
    c.text = ClipTextConfig::from_json(*text, fmt::format("{}: text_config", where));
  if (const Json* vision = fields.find("vision_config"))
    c.vision = ClipVisionConfig::from_json(*vision, fmt::format("{}: vision_config", where));
  fields.get("projection_dim", c.projection_dim);
  if (c.projection_dim < 1) fail<ConfigError>("{}: projection_dim {} must be positive", where, c.projection_dim);
  return c;
}

Json ClipConfig::to_json() const {
  return {{"architectures", {"CLIPModel"}},
          {"model_type", "clip"},
          {"projection_dim", projection_dim},
          {"text_config", text.to_json()},
          {"vision_config", vision.to_json()}};
}

ClipEncoder::ClipEncoder(const ClipTowerConfig& config) : layers_(std::make_unique<nn::ModuleList<ClipLayer>>()) {
  for (int64_t i = 0; i < config.num_hidden_layers; ++i) layers_->add(config);
  child("layers", *layers_);
}
ClipEncoder::~ClipEncoder() = default;

std::vector<Tensor> ClipEncoder::operator()(const Tensor& x, bool causal) const {
  std::vector<Tensor> states = {x};
  for (const auto& layer : *layers_) states.push_back((*layer)(states.back(), causal));
  return states;
}

ClipTextTransformer::Embeddings::Embeddings(const ClipTextConfig& c)
    : token_embedding(c.vocab_size, c.hidden_size), position_embedding(c.max_position_embeddings, c.hidden_size) {
  child("token_embedding", token_embedding), child("position_embedding", position_embedding);
}

ClipTextTransformer::ClipTextTransformer(const ClipTextConfig& c)
    : config_(c), embeddings_(c), encoder_(c), final_layer_norm_(c.hidden_size, c.layer_norm_eps) {
  child("embeddings", embeddings_), child("encoder", encoder_), child("final_layer_norm", final_layer_norm_);
}

ClipTextOutput ClipTextTransformer::operator()(const Tensor& ids) const {
  const auto [B, L] = dims<2>(ids);
  if (L > config_.max_position_embeddings)
    fail<Error>("texts of {} tokens, the text encoder reads at most {}", L, config_.max_position_embeddings);
  ClipTextOutput out;
  const Tensor x = embeddings_.token_embedding(ids) + embeddings_.position_embedding.weight.narrow(0, 0, L);
  out.hidden_states = encoder_(x, /*causal=*/true);
  out.last_hidden_state = final_layer_norm_(out.hidden_states.back());
  // Published configs say eos_token_id 2, which was never the end token: there the end token is the largest id.
  const Tensor end = config_.eos_token_id == 2 ? ids.argmax(-1) : ids.eq(config_.eos_token_id).to(at::kInt).argmax(-1);
  out.pooled = out.last_hidden_state.index({at::arange(B, ids.options()), end});
  return out;
}

ClipTextModel::ClipTextModel(const ClipTextConfig& c) : text_model_(c) {
  child("text_model", text_model_);
  if (c.projection)
    child("text_projection",
          *(text_projection_ = std::make_unique<nn::Linear>(c.hidden_size, c.projection_dim, false)));
}

ClipVisionTransformer::Embeddings::Embeddings(const ClipVisionConfig& c)
    : patch_embedding(c.num_channels, c.hidden_size,
                      {.kernel = c.patch_size, .stride = c.patch_size, .padding = 0, .bias = false}),
      position_embedding((c.image_size / c.patch_size) * (c.image_size / c.patch_size) + 1, c.hidden_size) {
  parameter("class_embedding", class_embedding, {c.hidden_size});
  child("patch_embedding", patch_embedding), child("position_embedding", position_embedding);
}

ClipVisionTransformer::ClipVisionTransformer(const ClipVisionConfig& c)
    : config_(c),
      embeddings_(c),
      pre_layrnorm_(c.hidden_size, c.layer_norm_eps),
      encoder_(c),
      post_layernorm_(c.hidden_size, c.layer_norm_eps) {
  child("embeddings", embeddings_), child("pre_layrnorm", pre_layrnorm_);
  child("encoder", encoder_), child("post_layernorm", post_layernorm_);
}

Tensor ClipVisionTransformer::operator()(const Tensor& images) const {
  expect_shape(images, {-1, config_.num_channels, config_.image_size, config_.image_size}, "images of CLIP");
  const Tensor patches = embeddings_.patch_embedding(images).flatten(2).transpose(1, 2);  // [B, N, D]
  const Tensor cls = embeddings_.class_embedding.expand({images.size(0), 1, config_.hidden_size});
  const Tensor x = pre_layrnorm_(at::cat({cls, patches}, 1) + embeddings_.position_embedding.weight);
  return post_layernorm_(encoder_(x, /*causal=*/false).back().select(1, 0));
}

ClipModel::ClipModel(const ClipConfig& c)
    : config_(c),
      text_model_(c.text),
      vision_model_(c.vision),
      visual_projection_(c.vision.hidden_size, c.projection_dim, false),
      text_projection_(c.text.hidden_size, c.projection_dim, false) {
  parameter("logit_scale", logit_scale, {});
  child("text_model", text_model_), child("vision_model", vision_model_);
  child("visual_projection", visual_projection_), child("text_projection", text_projection_);
}

void ClipModel::reset(at::Generator&) {
  const NoGrad no_grad;
  logit_scale.fill_(std::log(1 / 0.07));
}

Tensor ClipModel::image_features(const Tensor& images) const { return visual_projection_(vision_model_(images)); }
Tensor ClipModel::text_features(const Tensor& ids) const { return text_projection_(text_model_(ids).pooled); }

TensorMap adopt_clip_text(TensorMap tensors) {
  TensorMap out;
  for (auto& [name, tensor] : tensors)
    if (!name.ends_with("embeddings.position_ids"))  // a buffer of older files: 0, 1, 2, ...
      out[name.starts_with("text_model.") || name.starts_with("text_projection.") ? name : "text_model." + name] = tensor;
  return out;
}

}  // namespace fewstep::models
