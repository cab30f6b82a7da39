// LlamaConfig <-> transformers' config.json.
#include <fmt/format.h>

#include "src/base/log.h"
#include "src/models/json_fields.h"
#include "src/models/llama.h"

namespace fewstep::models {
namespace {

// transformers up to 4: "rope_theta" and "rope_scaling" (null, or a map with "rope_type" or "type"); from 5 on
// "rope_parameters" holds both. The newer one wins, as in transformers.
void read_rope(const JsonFields& fields, LlamaConfig& c) {
  fields.get("rope_theta", c.rope_theta);
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const Json* settings = fields.find(key);
    if (settings == nullptr) continue;
    const JsonFields rope(*settings, fmt::format("{}: {}", fields.where(), key));
    for (const auto& [name, value] : settings->items())
      if (value.is_object())
        fail<ConfigError>("{}: '{}': rope settings per layer type are not supported", rope.where(), name);
    rope.only("type", "default");
    rope.only("rope_type", "default");
    rope.get("rope_theta", c.rope_theta);
    double partial = 1.0;
    rope.get("partial_rotary_factor", partial);
    if (partial != 1.0) fail<ConfigError>("{}: partial_rotary_factor {} is not supported (only 1)", rope.where(), partial);
  }
}

void put(Json& json, const char* key, const std::optional<int64_t>& id) { json[key] = id ? Json(*id) : Json(nullptr); }

}  // namespace

LlamaConfig LlamaConfig::from_json(const Json& json, std::string_view where) {
  const JsonFields fields(json, where);
  LlamaConfig c;
  // transformers' defaults for absent keys, not those of our training configs.
  c.hidden_size = 4096, c.intermediate_size = 11008, c.num_hidden_layers = 32, c.num_attention_heads = 32;
  fields.only("hidden_act", "silu");
  fields.get("vocab_size", c.vocab_size);
  fields.get("hidden_size", c.hidden_size);
  fields.get("intermediate_size", c.intermediate_size);
  fields.get("num_hidden_layers", c.num_hidden_layers);
  fields.get("num_attention_heads", c.num_attention_heads);
  fields.get("num_key_value_heads", c.num_key_value_heads);
  fields.get("head_dim", c.head_dim);
  fields.get("max_position_embeddings", c.max_position_embeddings);
  fields.get("rms_norm_eps", c.rms_norm_eps);
  fields.get("initializer_range", c.initializer_range);
  fields.get("attention_bias", c.attention_bias);
  fields.get("mlp_bias", c.mlp_bias);
  fields.get("tie_word_embeddings", c.tie_word_embeddings);
  fields.get("qk_norm", c.qk_norm);
  fields.get("embed_affine", c.embed_affine);
  fields.get("bos_token_id", c.bos_token_id);
  fields.get("eos_token_id", c.eos_token_id);
  fields.get("pad_token_id", c.pad_token_id);
  read_rope(fields, c);
  double dropout = 0.0;
  fields.get("attention_dropout", dropout);
  if (dropout != 0.0) log::warn("{}: attention_dropout {} is ignored", where, dropout);
  c.validate(where);
  return c;
}

Json LlamaConfig::to_json() const {
  Json json;
  json["architectures"] = Json::array({"LlamaForCausalLM"});
  json["model_type"] = "llama";
  json["vocab_size"] = vocab_size;
  json["hidden_size"] = hidden_size;
  json["intermediate_size"] = intermediate_size;
  json["num_hidden_layers"] = num_hidden_layers;
  json["num_attention_heads"] = num_attention_heads;
  json["num_key_value_heads"] = kv_heads();
  json["head_dim"] = head_size();
  json["hidden_act"] = "silu";
  json["max_position_embeddings"] = max_position_embeddings;
  json["rms_norm_eps"] = rms_norm_eps;
  json["rope_theta"] = rope_theta;  // both spellings: older and newer transformers read the same network
  json["rope_scaling"] = nullptr;
  json["rope_parameters"] = Json{{"rope_theta", rope_theta}, {"rope_type", "default"}};
  json["initializer_range"] = initializer_range;
  json["attention_bias"] = attention_bias;
  json["attention_dropout"] = 0.0;
  json["mlp_bias"] = mlp_bias;
  json["tie_word_embeddings"] = tie_word_embeddings;
  if (qk_norm) json["qk_norm"] = true;  // this and the next are not part of transformers' Llama
  if (embed_affine) json["embed_affine"] = true;
  put(json, "bos_token_id", bos_token_id);
  put(json, "eos_token_id", eos_token_id);
  put(json, "pad_token_id", pad_token_id);
  return json;
}

void LlamaConfig::validate(std::string_view where) const {
  const std::pair<const char*, int64_t> positive[] = {
      {"vocab_size", vocab_size}, {"hidden_size", hidden_size}, {"intermediate_size", intermediate_size},
      {"num_hidden_layers", num_hidden_layers}, {"num_attention_heads", num_attention_heads},
      {"max_position_embeddings", max_position_embeddings}};
  for (const auto& [key, value] : positive)
    if (value < 1) fail<ConfigError>("{}: {} must be at least 1, is {}", where, key, value);
  if (num_key_value_heads < 0 || head_dim < 0)
    fail<ConfigError>("{}: num_key_value_heads ({}) and head_dim ({}) must not be negative", where, num_key_value_heads, head_dim);
  if (head_dim == 0 && hidden_size % num_attention_heads != 0)
    fail<ConfigError>("{}: hidden_size {} is not a multiple of num_attention_heads {} and head_dim is not given", where,
                      hidden_size, num_attention_heads);
  if (num_attention_heads % kv_heads() != 0)
    fail<ConfigError>("{}: num_attention_heads {} is not a multiple of num_key_value_heads {}", where, num_attention_heads,
                      kv_heads());
  if (head_size() % 2 != 0) fail<ConfigError>("{}: head_dim {} is odd; rotary positions need pairs", where, head_size());
}

void describe(config::Visitor& v, LlamaConfig& c) {
  v.field("hidden_size", c.hidden_size, "width of the residual stream", config::kAtLeastOne);
  v.field("intermediate_size", c.intermediate_size, "width of the SwiGLU layer", config::kAtLeastOne);
  v.field("num_hidden_layers", c.num_hidden_layers, "number of blocks", config::kAtLeastOne);
  v.field("num_attention_heads", c.num_attention_heads, "query heads", config::kAtLeastOne);
  v.field("num_key_value_heads", c.num_key_value_heads, "key and value heads; 0: as many as query heads", config::kNonNegative);
  v.field("head_dim", c.head_dim, "size of a head; 0: hidden_size / num_attention_heads", config::kNonNegative);
  v.field("max_position_embeddings", c.max_position_embeddings, "longest sequence it is meant for", config::kAtLeastOne);
  v.field("rms_norm_eps", c.rms_norm_eps, "epsilon of every RMSNorm", config::kPositive);
  v.field("rope_theta", c.rope_theta, "base of the rotary frequencies", config::kPositive);
  v.field("initializer_range", c.initializer_range, "standard deviation of the initial weights", config::kNonNegative);
  v.field("attention_bias", c.attention_bias, "biases in q, k, v and o projections");
  v.field("mlp_bias", c.mlp_bias, "biases in gate, up and down projections");
  v.field("tie_word_embeddings", c.tie_word_embeddings, "output layer shares the embedding");
  v.field("qk_norm", c.qk_norm, "RMSNorm of each head's q and k (Qwen3)");
  const bool divides = c.num_attention_heads > 0 && (c.head_dim > 0 || c.hidden_size % c.num_attention_heads == 0);
  v.check(divides, "hidden_size", "must be a multiple of num_attention_heads, or give head_dim");
  if (c.num_attention_heads > 0 && c.num_key_value_heads > 0)
    v.check(c.num_attention_heads % c.num_key_value_heads == 0, "num_key_value_heads", "must divide num_attention_heads");
  if (divides) v.check(c.head_size() % 2 == 0, "head_dim", "must be even: rotary positions turn pairs");
}

}  // namespace fewstep::models
