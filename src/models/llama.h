// Decoder-only transformer in the Llama form (Touvron et al. 2023, arXiv 2302.13971; grouped KV heads as in Llama 2):
// RMSNorm, rotary positions, SwiGLU, optional per-head q/k norm (Qwen3). Names are transformers' `LlamaForCausalLM`.
#pragma once
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

#include "src/base/json.h"
#include "src/config/visitor.h"
#include "src/models/kv_cache.h"
#include "src/nn/attention.h"
#include "src/nn/layers.h"

namespace fewstep::models {

struct LlamaConfig {
  int64_t vocab_size = 32000;
  int64_t hidden_size = 256;
  int64_t intermediate_size = 688;
  int64_t num_hidden_layers = 4;
  int64_t num_attention_heads = 4;
  int64_t num_key_value_heads = 0;  // 0: as many as attention heads
  int64_t head_dim = 0;             // 0: hidden_size / num_attention_heads
  int64_t max_position_embeddings = 2048;
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000.0;
  double initializer_range = 0.02;
  bool attention_bias = false;
  bool mlp_bias = false;
  bool tie_word_embeddings = false;
  bool qk_norm = false;             // ours: RMSNorm over head_dim on q and k before the rotation, names as in Qwen3
  bool embed_affine = false;        // ours: the residual stream starts at weight * embedding + bias (a learned scale and shift)
  std::optional<int64_t> bos_token_id, eos_token_id, pad_token_id;  // kept, not used by the network

  int64_t kv_heads() const { return num_key_value_heads > 0 ? num_key_value_heads : num_attention_heads; }
  int64_t head_size() const { return head_dim > 0 ? head_dim : hidden_size / num_attention_heads; }
  // transformers' config.json, both spellings of the rope settings (rope_theta + rope_scaling, rope_parameters).
  // ConfigError names `where`, the key and the value for everything this network does not compute.
  static LlamaConfig from_json(const Json& json, std::string_view where);
  Json to_json() const;
  void validate(std::string_view where) const;  // ConfigError: sizes that do not divide, non-positive sizes
};
// The keys of a training config's `model:` section; vocab_size is not among them: it follows from the sequence layout.
void describe(config::Visitor& v, LlamaConfig& c);

struct ForwardOptions {
  Tensor positions = {};     // int64 [L] or [B, L]; default: cache length + arange
  // Bool (true = attend) or additive in the weights' dtype (0 or -inf), [B|1, 1, L, K]; K = cache length + L, or `keys`.
  // Default: causal.
  Tensor mask = {};
  KvCache* cache = nullptr;  // appended to: its length grows by L
  // Rows of different lengths: query (b, l) is written to place slots[b, l] of row b, attention looks at the first `keys`
  // places of every row, as far as the mask (required) lets it; the cache's `length` plays no part. int64 [B, L].
  Tensor slots = {};
  int64_t keys = 0;
};

class LlamaAttention : public nn::Module {
 public:
  explicit LlamaAttention(const LlamaConfig& c);

 private:
  friend class LlamaBlock;
  nn::Linear q_proj, k_proj, v_proj, o_proj;
  std::optional<nn::RMSNorm> q_norm, k_norm;
};

class LlamaMlp : public nn::Module {
 public:
  explicit LlamaMlp(const LlamaConfig& c);

 private:
  friend class LlamaBlock;
  nn::Linear gate_proj, up_proj, down_proj;
};

// weight * e + bias per dimension: the map from the space of the embedding table to that of the residual stream.
class EmbedAffine : public nn::Module {
 public:
  explicit EmbedAffine(int64_t dim);
  Tensor operator()(const Tensor& embeds) const;
  Tensor weight, bias;  // [D]

 protected:
  void reset(at::Generator& generator) override;  // the identity
};

// What the layers of one forward pass share.
struct LlamaPass {
  Tensor cos, sin;           // [L, D] or [B, 1, L, D]
  Tensor mask;               // undefined: causal when `causal`, else everything
  bool causal = false;
  KvCache* cache = nullptr;
  Tensor slots;              // flat places (b Hkv + h) capacity + slot, int64 [B, Hkv, L]
  int64_t keys = 0;          // places of the cache that attention looks at
  bool packed = false;       // use the packed inference weights
};

class LlamaBlock : public nn::Module {
 public:
  LlamaBlock(const LlamaConfig& c, int64_t index);
  Tensor operator()(const Tensor& x, const LlamaPass& pass) const;  // [B, L, D] -> [B, L, D]
  void pack();
  void unpack();

 private:
  Tensor attend(const Tensor& x, const LlamaPass& pass) const;
  void remember(const LlamaPass& pass, Tensor& k, Tensor& v) const;
  Tensor mlp(const Tensor& x, bool packed) const;
  int64_t index_, heads_, kv_heads_, head_dim_;
  LlamaAttention self_attn_;
  LlamaMlp mlp_;
  nn::RMSNorm input_layernorm_, post_attention_layernorm_;
  Tensor packed_qkv_, packed_qkv_bias_, packed_gate_up_, packed_gate_up_bias_;
};

class LlamaForCausalLM : public nn::Module {
 public:
  explicit LlamaForCausalLM(const LlamaConfig& config);
  const LlamaConfig& config() const { return config_; }

  Tensor embed(const Tensor& ids) const;                                          // int64 [B, L] -> [B, L, D]
  Tensor hidden(const Tensor& embeds, const ForwardOptions& options = {}) const;  // -> [B, L, D], after the last norm
  Tensor logits(const Tensor& hidden) const;                                      // -> [..., V]
  Tensor logits(const Tensor& hidden, int64_t first, int64_t count) const;        // of ids first .. first + count - 1 only
  Tensor operator()(const Tensor& ids) const;                                     // logits(hidden(embed(ids)))
  // Cross-entropy of logits(hidden) against targets, per position and without keeping the probabilities:
  // hidden [B, L, D], targets int64 [B, L] (negative: ignored, loss 0) -> float32 [B, L]. The caller sums and divides.
  Tensor token_loss(const Tensor& hidden, const Tensor& targets) const;
  Tensor embedding_weight() const;                                                // [V, D]
  KvCache make_cache(int64_t batch, int64_t capacity) const;                      // on the weights' device and dtype
  // Keys as position 0 has them [B, H, L, D], turned to positions int64 [B, L] (all below max_position_embeddings).
  Tensor rotate(const Tensor& keys, const Tensor& positions) const;

  void set_recompute(bool on) { recompute_ = on; }  // recompute each block's activations in backward
  // Packs q|k|v and gate|up into one matrix each for decoding without gradients. The copies do not follow later weight
  // changes: call again after them, or release_inference(). Copies two thirds of the weights; training never needs it.
  void prepare_inference();
  void release_inference();

 protected:
  void reset(at::Generator& generator) override;  // N(0, initializer_range), zero biases

 private:
  struct Body : nn::Module {
    explicit Body(const LlamaConfig& c);
    nn::Embedding embed_tokens;
    std::optional<EmbedAffine> embed_affine;
    nn::ModuleList<LlamaBlock> layers;
    nn::RMSNorm norm;
  };
  LlamaPass plan(const Tensor& embeds, const ForwardOptions& options) const;
  void plan_cache(const Tensor& embeds, const ForwardOptions& options, LlamaPass& pass) const;
  nn::RotaryTable rotary(int64_t positions, const Tensor& like) const;

  LlamaConfig config_;
  Body model_;
  std::optional<nn::Linear> lm_head_;  // or, tied:
  Tensor tied_head_;
  mutable std::mutex rotary_mutex_;
  mutable nn::RotaryTable rotary_;
  bool recompute_ = false;
  bool packed_ = false;
};

}  // namespace fewstep::models
