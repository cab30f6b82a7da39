#include "src/models/llama.h"

#include "src/base/error.h"
#include "src/nn/fused.h"
#include "src/nn/lora.h"
#include "src/nn/recompute.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::models {
namespace {

Tensor stack_rows(std::initializer_list<const nn::Linear*> layers, Tensor nn::Linear::* member) {
  std::vector<Tensor> parts;
  for (const nn::Linear* layer : layers)
    if ((layer->*member).defined()) parts.push_back(layer->*member);
  return parts.empty() ? Tensor() : at::cat(parts);
}

// Queries at past .. past + length - 1 see keys up to their own position: bool [1, 1, L, past + L].
Tensor causal_mask(int64_t past, int64_t length, at::Device device) {
  return at::ones({length, past + length}, at::TensorOptions().dtype(at::kBool).device(device)).tril(past).view({1, 1, length, past + length});
}

}  // namespace

LlamaAttention::LlamaAttention(const LlamaConfig& c)
    : q_proj(c.hidden_size, c.num_attention_heads * c.head_size(), c.attention_bias),
      k_proj(c.hidden_size, c.kv_heads() * c.head_size(), c.attention_bias),
      v_proj(c.hidden_size, c.kv_heads() * c.head_size(), c.attention_bias),
      o_proj(c.num_attention_heads * c.head_size(), c.hidden_size, c.attention_bias) {
  child("q_proj", q_proj);
  child("k_proj", k_proj);
  child("v_proj", v_proj);
  child("o_proj", o_proj);
  if (!c.qk_norm) return;
  child("q_norm", q_norm.emplace(c.head_size(), c.rms_norm_eps));
  child("k_norm", k_norm.emplace(c.head_size(), c.rms_norm_eps));
}

LlamaMlp::LlamaMlp(const LlamaConfig& c)
    : gate_proj(c.hidden_size, c.intermediate_size, c.mlp_bias),
      up_proj(c.hidden_size, c.intermediate_size, c.mlp_bias),
      down_proj(c.intermediate_size, c.hidden_size, c.mlp_bias) {
  child("gate_proj", gate_proj);
  child("up_proj", up_proj);
  child("down_proj", down_proj);
}

EmbedAffine::EmbedAffine(int64_t dim) {
  parameter("weight", weight, {dim});
  parameter("bias", bias, {dim});
}

Tensor EmbedAffine::operator()(const Tensor& embeds) const { return embeds * weight + bias; }

void EmbedAffine::reset(at::Generator&) {
  const NoGrad no_grad;
  weight.fill_(1);
  bias.zero_();
}

LlamaBlock::LlamaBlock(const LlamaConfig& c, int64_t index)
    : index_(index),
      heads_(c.num_attention_heads),
      kv_heads_(c.kv_heads()),
      head_dim_(c.head_size()),
      self_attn_(c),
      mlp_(c),
      input_layernorm_(c.hidden_size, c.rms_norm_eps),
      post_attention_layernorm_(c.hidden_size, c.rms_norm_eps) {
  child("self_attn", self_attn_);
  child("mlp", mlp_);
  child("input_layernorm", input_layernorm_);
  child("post_attention_layernorm", post_attention_layernorm_);
}

Tensor LlamaBlock::operator()(const Tensor& x, const LlamaPass& pass) const {
  const Tensor h = x + attend(input_layernorm_(x), pass);
  return h + mlp(post_attention_layernorm_(h), pass.packed);
}

Tensor LlamaBlock::attend(const Tensor& x, const LlamaPass& pass) const {
  const int64_t B = x.size(0), L = x.size(1);
  const auto heads = [&](const Tensor& y, int64_t count) { return y.view({B, L, count, head_dim_}); };
  Tensor q, k, v;  // [B, L, H, D]
  if (pass.packed) {
    const Tensor qkv = at::linear(x, packed_qkv_, packed_qkv_bias_).view({B, L, heads_ + 2 * kv_heads_, head_dim_});
    q = qkv.narrow(2, 0, heads_), k = qkv.narrow(2, heads_, kv_heads_), v = qkv.narrow(2, heads_ + kv_heads_, kv_heads_);
  } else {
    q = heads(self_attn_.q_proj(x), heads_), k = heads(self_attn_.k_proj(x), kv_heads_), v = heads(self_attn_.v_proj(x), kv_heads_);
  }
  if (self_attn_.q_norm) q = (*self_attn_.q_norm)(q), k = (*self_attn_.k_norm)(k);
  q = nn::apply_rotary(q.transpose(1, 2), pass.cos, pass.sin);  // [B, H, L, D]
  k = nn::apply_rotary(k.transpose(1, 2), pass.cos, pass.sin);
  v = v.transpose(1, 2);
  if (pass.cache != nullptr) remember(pass, k, v);
  return self_attn_.o_proj(merge_heads(nn::attention(q, k, v, pass.mask, pass.causal)));
}

// Writes k and v [B, H, L, D] into the cache and puts what attention looks at in their place: [B, H, K, D].
void LlamaBlock::remember(const LlamaPass& pass, Tensor& k, Tensor& v) const {
  const auto i = static_cast<size_t>(index_);
  const int64_t L = k.size(2), past = pass.cache->length;
  const auto put = [&](const Tensor& layer, Tensor& x) {
    if (pass.slots.defined())
      KvCache::write(layer, pass.slots, x);
    else
      layer.narrow(2, past, L).copy_(x);
    x = layer.narrow(2, 0, pass.keys);
  };
  put(pass.cache->keys[i], k);
  put(pass.cache->values[i], v);
}

// SwiGLU: down(silu(gate x) * up x)
Tensor LlamaBlock::mlp(const Tensor& x, bool packed) const {
  if (!packed) return mlp_.down_proj(nn::swiglu(mlp_.gate_proj(x), mlp_.up_proj(x)));
  const auto both = at::linear(x, packed_gate_up_, packed_gate_up_bias_).chunk(2, -1);
  return mlp_.down_proj(nn::swiglu(both[0], both[1]));
}

void LlamaBlock::pack() {
  const NoGrad no_grad;
  packed_qkv_ = stack_rows({&self_attn_.q_proj, &self_attn_.k_proj, &self_attn_.v_proj}, &nn::Linear::weight);
  packed_qkv_bias_ = stack_rows({&self_attn_.q_proj, &self_attn_.k_proj, &self_attn_.v_proj}, &nn::Linear::bias);
  packed_gate_up_ = stack_rows({&mlp_.gate_proj, &mlp_.up_proj}, &nn::Linear::weight);
  packed_gate_up_bias_ = stack_rows({&mlp_.gate_proj, &mlp_.up_proj}, &nn::Linear::bias);
}

void LlamaBlock::unpack() { packed_qkv_ = packed_qkv_bias_ = packed_gate_up_ = packed_gate_up_bias_ = Tensor(); }

LlamaForCausalLM::Body::Body(const LlamaConfig& c) : embed_tokens(c.vocab_size, c.hidden_size), norm(c.hidden_size, c.rms_norm_eps) {
  child("embed_tokens", embed_tokens);
  if (c.embed_affine) child("embed_affine", embed_affine.emplace(c.hidden_size));
  for (int64_t i = 0; i < c.num_hidden_layers; ++i) layers.add(c, i);
  child("layers", layers);
  child("norm", norm);
}

LlamaForCausalLM::LlamaForCausalLM(const LlamaConfig& config) : config_(config), model_(config) {
  config_.validate("LlamaForCausalLM");
  child("model", model_);
  if (config_.tie_word_embeddings)
    tie("lm_head.weight", tied_head_, model_.embed_tokens.weight);
  else
    child("lm_head", lm_head_.emplace(config_.hidden_size, config_.vocab_size, false));
}

// One generator for the whole network: the draws follow the order of registration.
void LlamaForCausalLM::reset(at::Generator& generator) {
  const NoGrad no_grad;
  for (NamedTensor& p : parameters()) {
    if (p.name.ends_with("norm.weight") || p.name.ends_with("embed_affine.weight")) continue;  // ones, from the layer itself
    if (p.tensor.dim() == 1)
      p.tensor.zero_();
    else
      nn::init_normal(p.tensor, config_.initializer_range, generator);
  }
}

Tensor LlamaForCausalLM::embedding_weight() const { return model_.embed_tokens.weight; }
Tensor LlamaForCausalLM::embed(const Tensor& ids) const { return model_.embed_tokens(ids); }
Tensor LlamaForCausalLM::operator()(const Tensor& ids) const { return logits(hidden(embed(ids))); }

Tensor LlamaForCausalLM::logits(const Tensor& hidden) const {
  return lm_head_ ? (*lm_head_)(hidden) : at::linear(hidden, tied_head_);
}

Tensor LlamaForCausalLM::logits(const Tensor& hidden, int64_t first, int64_t count) const {
  if (!nn::active_adapters().empty()) return logits(hidden).narrow(-1, first, count);
  return at::linear(hidden, (lm_head_ ? lm_head_->weight : tied_head_).narrow(0, first, count));
}

// The rotary table is made on first use (a network on the meta device needs none) and grows by doubling.
nn::RotaryTable LlamaForCausalLM::rotary(int64_t positions, const Tensor& like) const {
  const std::lock_guard lock(rotary_mutex_);
  const bool fits = rotary_.cos.defined() && rotary_.cos.size(0) >= positions && rotary_.cos.device() == like.device() &&
                    rotary_.cos.scalar_type() == like.scalar_type();
  if (!fits) {
    int64_t size = 64;
    while (size < positions) size *= 2;
    const nn::RotaryTable table = nn::rotary_table(size, config_.head_size(), config_.rope_theta);
    rotary_ = {table.cos.to(like.options()), table.sin.to(like.options())};
  }
  return rotary_;
}

void LlamaForCausalLM::plan_cache(const Tensor& embeds, const ForwardOptions& options, LlamaPass& pass) const {
  const int64_t B = embeds.size(0), L = embeds.size(1), capacity = options.cache->capacity();
  if (options.cache->batch() != B)
    fail<Error>("KV cache of {} rows was given {} rows of embeddings", options.cache->batch(), B);
  pass.keys = options.slots.defined() ? options.keys : options.cache->length + L;
  if (pass.keys > capacity)
    fail<Error>("KV cache of capacity {} cannot hold {} positions a row ({} of them new)", capacity, pass.keys, L);
  if (!options.slots.defined()) return;
  expect_shape(options.slots, {B, L}, "cache slots");
  if (!options.mask.defined() || !options.positions.defined())
    fail<Error>("a pass with its own cache slots needs a mask and positions: rows have different lengths");
  const int64_t H = config_.kv_heads();
  pass.slots = options.slots.unsqueeze(1) + at::arange(B * H, options.slots.options()).view({B, H, 1}) * capacity;
}

LlamaPass LlamaForCausalLM::plan(const Tensor& embeds, const ForwardOptions& options) const {
  const int64_t L = embeds.size(1), past = options.cache ? options.cache->length : 0;
  LlamaPass pass;
  pass.mask = options.mask, pass.cache = options.cache;
  if (options.cache != nullptr) plan_cache(embeds, options, pass);
  if (options.positions.defined()) {
    const int64_t known = options.positions.is_cpu() ? options.positions.max().item<int64_t>() + 1 : config_.max_position_embeddings;
    const nn::RotaryTable table = rotary(std::max<int64_t>(known, 1), embeds);
    const auto rows = [&](const Tensor& t) {  // index_select: one copy, where advanced indexing would make several passes
      return t.index_select(0, options.positions.flatten()).view({options.positions.dim() == 2 ? options.positions.size(0) : 1, L, -1});
    };
    pass.cos = rows(table.cos), pass.sin = rows(table.sin);
    if (options.positions.dim() == 2)
      pass.cos = pass.cos.unsqueeze(1), pass.sin = pass.sin.unsqueeze(1);  // [B, 1, L, D]
    else
      pass.cos = pass.cos.squeeze(0), pass.sin = pass.sin.squeeze(0);      // [L, D]
  } else {
    const nn::RotaryTable table = rotary(past + L, embeds);
    pass.cos = table.cos.narrow(0, past, L), pass.sin = table.sin.narrow(0, past, L);
  }
  if (!options.mask.defined() && L > 1) {
    pass.causal = past == 0;
    if (past > 0) pass.mask = causal_mask(past, L, embeds.device());
  }
  pass.packed = packed_ && !at::GradMode::is_enabled() && nn::active_adapters().empty();
  return pass;
}

Tensor LlamaForCausalLM::hidden(const Tensor& embeds, const ForwardOptions& options) const {
  expect_shape(embeds, {-1, -1, config_.hidden_size}, "embeds");
  if (options.cache != nullptr && at::GradMode::is_enabled() && embeds.requires_grad())
    fail<Error>("a KV cache is for generation: its rows are written in place and carry no gradients");
  const LlamaPass pass = plan(embeds, options);
  const bool again = recompute_ && at::GradMode::is_enabled() && options.cache == nullptr;
  Tensor x = model_.embed_affine ? (*model_.embed_affine)(embeds) : embeds;
  for (const auto& block : model_.layers)
    x = again ? nn::recompute(*block, [&b = *block, pass](const nn::Tensors& in) { return nn::Tensors{b(in[0], pass)}; }, {x})[0]
              : (*block)(x, pass);
  if (options.cache != nullptr && !options.slots.defined()) options.cache->length += embeds.size(1);
  return model_.norm(x);
}

Tensor LlamaForCausalLM::token_loss(const Tensor& hidden, const Tensor& targets) const {
  Tensor scores = logits(hidden).flatten(0, -2);
  if (at::isReducedFloatingType(scores.scalar_type())) scores = scores.to(at::kFloat);
  const Tensor wanted = at::where(targets >= 0, targets, -100).flatten();
  return at::cross_entropy_loss(scores, wanted, {}, at::Reduction::None, -100).view(targets.sizes());
}

Tensor LlamaForCausalLM::rotate(const Tensor& keys, const Tensor& positions) const {
  const nn::RotaryTable table = rotary(config_.max_position_embeddings, keys);
  const auto at_positions = [&](const Tensor& t) { return t.index_select(0, positions.flatten()).view({keys.size(0), 1, keys.size(2), -1}); };
  return nn::apply_rotary(keys, at_positions(table.cos), at_positions(table.sin));
}

KvCache LlamaForCausalLM::make_cache(int64_t batch, int64_t capacity) const {
  const Tensor& w = model_.embed_tokens.weight;
  return KvCache(config_, batch, capacity, w.device(), w.scalar_type());
}

void LlamaForCausalLM::prepare_inference() {
  for (const auto& block : model_.layers) block->pack();
  packed_ = true;
}

void LlamaForCausalLM::release_inference() {
  for (const auto& block : model_.layers) block->unpack();
  packed_ = false;
}

}  // namespace fewstep::models
