#include "src/models/contrastive.h"

#include "src/models/json_fields.h"
#include "src/nn/attention.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::models {

ContrastiveConfig ContrastiveConfig::from_json(const Json& json, std::string_view where) {
  const JsonFields fields(json, where);
  ContrastiveConfig c;
  if (const Json* image = fields.find("image")) c.image = ConvEncoderConfig::from_json(*image, fmt::format("{}: image", where));
  fields.get("vocab_size", c.vocab_size);
  fields.get("pad_token_id", c.pad_token_id);
  fields.get("context_length", c.context_length);
  fields.get("text_width", c.text_width);
  fields.get("text_hidden", c.text_hidden);
  fields.get("text_layers", c.text_layers);
  fields.get("text_heads", c.text_heads);
  fields.get("initial_logit_scale", c.initial_logit_scale);
  c.validate(where);
  return c;
}

Json ContrastiveConfig::to_json() const {
  Json json;
  json["_class_name"] = "ContrastiveModel";
  json["image"] = image.to_json();
  json["vocab_size"] = vocab_size;
  json["pad_token_id"] = pad_token_id;
  json["context_length"] = context_length;
  json["text_width"] = text_width;
  json["text_hidden"] = text_hidden;
  json["text_layers"] = text_layers;
  json["text_heads"] = text_heads;
  json["initial_logit_scale"] = initial_logit_scale;
  return json;
}

void ContrastiveConfig::validate(std::string_view where) const {
  image.validate(where);
  if (vocab_size < 1 || pad_token_id < 0 || pad_token_id >= vocab_size)
    fail<ConfigError>("{}: pad_token_id {} is not in the vocabulary [0, {})", where, pad_token_id, vocab_size);
  if (context_length < 1 || text_width < 1 || text_hidden < 1 || text_layers < 0)
    fail<ConfigError>("{}: context_length {}, text_width {}, text_hidden {} must be positive", where, context_length, text_width, text_hidden);
  if (text_layers > 0 && (text_heads < 1 || text_width % text_heads != 0))
    fail<ConfigError>("{}: text_width {} is not a multiple of text_heads {}", where, text_width, text_heads);
  if (!(initial_logit_scale > 0)) fail<ConfigError>("{}: initial_logit_scale {} must be positive", where, initial_logit_scale);
}

void describe(config::Visitor& v, ContrastiveConfig& c) {
  v.field("image", c.image, "image tower");
  v.field("context_length", c.context_length, "longest caption in tokens", config::kAtLeastOne);
  v.field("text_width", c.text_width, "token embedding", config::kAtLeastOne);
  v.field("text_hidden", c.text_hidden, "hidden layer of the text tower's MLP", config::kAtLeastOne);
  v.field("text_layers", c.text_layers, "transformer layers before the mean; 0: mean of embeddings", config::kNonNegative);
  v.field("text_heads", c.text_heads, "attention heads of those layers", config::kAtLeastOne);
  v.field("initial_logit_scale", c.initial_logit_scale, "inverse temperature at the start", config::kPositive);
  if (c.text_layers > 0 && c.text_heads > 0) v.check(c.text_width % c.text_heads == 0, "text_heads", "must divide text_width");
}

ContrastiveModel::TextLayer::TextLayer(int64_t width, int64_t heads_)
    : heads(heads_), norm1(width), norm2(width), qkv(width, 3 * width), out(width, width), up(width, 4 * width), down(4 * width, width) {
  child("norm1", norm1);
  child("qkv", qkv);
  child("out", out);
  child("norm2", norm2);
  child("up", up);
  child("down", down);
}

Tensor ContrastiveModel::TextLayer::operator()(const Tensor& x, const Tensor& mask) const {
  const auto parts = qkv(norm1(x)).chunk(3, -1);
  const Tensor y = nn::attention(split_heads(parts[0], heads), split_heads(parts[1], heads), split_heads(parts[2], heads), mask);
  const Tensor h = x + out(merge_heads(y));
  return h + down(at::silu(up(norm2(h))));
}

ContrastiveModel::Text::Text(const ContrastiveConfig& c)
    : token_embedding(c.vocab_size, c.text_width), up(c.text_width, c.text_hidden), down(c.text_hidden, c.image.embedding_dim) {
  child("token_embedding", token_embedding);
  if (c.text_layers > 0) {
    position_embedding = std::make_unique<nn::Embedding>(c.context_length, c.text_width);
    child("position_embedding", *position_embedding);
    for (int64_t i = 0; i < c.text_layers; ++i) layers.add(c.text_width, c.text_heads);
    child("layers", layers);
  }
  child("up", up);
  child("down", down);
}

Tensor ContrastiveModel::Text::operator()(const Tensor& ids, int64_t pad) const {
  const Tensor real = ids != pad;  // [B, T]
  Tensor x = token_embedding(ids);
  if (position_embedding) {
    x = x + position_embedding->weight.narrow(0, 0, ids.size(1));
    // A caption of nothing but padding attends to its first position: softmax over nothing is not a number.
    const Tensor first = at::arange(ids.size(1), ids.options()) == 0;
    const Tensor mask = (real | first).unsqueeze(1).unsqueeze(1).expand({-1, 1, ids.size(1), -1});  // [B, 1, T, T]
    for (const auto& layer : layers) x = (*layer)(x, mask);
  }
  const Tensor weight = real.to(x.scalar_type()).unsqueeze(-1);
  const Tensor mean = (x * weight).sum(1) / weight.sum(1).clamp_min(1);
  return down(at::silu(up(mean)));
}

ContrastiveModel::ContrastiveModel(const ContrastiveConfig& config)
    : config_((config.validate("ContrastiveModel"), config)), image_(config.image), text_(config) {
  child("image", image_);
  child("text", text_);
  parameter("logit_scale", logit_scale, {});
}

void ContrastiveModel::reset(at::Generator&) {
  const NoGrad no_grad;
  logit_scale.fill_(std::log(config_.initial_logit_scale));
}

Tensor ContrastiveModel::image_embeddings(const Tensor& images) const {
  const Tensor e = image_(images).embedding;
  return e / e.norm(2, {1}, true).clamp_min(1e-12);
}

Tensor ContrastiveModel::text_embeddings(const Tensor& ids) const {
  if (ids.size(1) > config_.context_length && config_.text_layers > 0)
    fail<Error>("captions of {} tokens, the text tower reads at most {}", ids.size(1), config_.context_length);
  const Tensor e = text_(ids, config_.pad_token_id);
  return e / e.norm(2, {1}, true).clamp_min(1e-12);
}

Tensor ContrastiveModel::scale() const { return logit_scale.exp().clamp_max(100.0); }

}  // namespace fewstep::models
