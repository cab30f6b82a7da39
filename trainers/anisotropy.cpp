#include "trainers/anisotropy.h"

#include "src/base/error.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"

namespace fewstep {
namespace {

using models::LlamaForCausalLM;

Tensor named(const LlamaForCausalLM& model, std::string_view name) {
  for (const auto& [key, tensor] : model.parameters())
    if (key == name) return tensor;
  fail("the network has no parameter '{}'", name);
}

}  // namespace

void describe(config::Visitor& v, AnisotropyConfig& c) {
  v.field("spread", c.spread, "scales of the dimensions are log-uniform in [1 / spread, spread]", config::kAtLeastOne);
  v.field("shift", c.shift, "of the dimensions: deviation of a normal draw, in deviations of the table", config::kNonNegative);
  v.field("seed", c.seed, "of scales and shifts", config::kNonNegative);
}

std::unique_ptr<LlamaForCausalLM> reparameterise(const LlamaForCausalLM& model, const AnisotropyConfig& config) {
  const NoGrad no_grad;
  models::LlamaConfig c = model.config();
  if (c.tie_word_embeddings)
    fail<ConfigError>("anisotropy: the output layer of this network shares the embedding table: another table, another function");
  c.embed_affine = true;
  auto out = std::make_unique<LlamaForCausalLM>(c);
  out->to(model.embedding_weight().scalar_type());
  const Tensor scale = named(*out, "model.embed_affine.weight"), bias = named(*out, "model.embed_affine.bias");
  scale.fill_(1), bias.zero_();
  TensorMap weights;
  for (const auto& [name, tensor] : model.state()) weights.emplace(name, tensor.to(at::kCPU));
  out->load(weights, "the network to reparameterise", {.allow_missing = {"model.embed_affine."}, .allow_extra = {}});

  const int64_t d = c.hidden_size;
  const auto seed = static_cast<uint64_t>(config.seed);
  const Tensor one = at::zeros({1}, at::kLong), table = out->embedding_weight();
  const Tensor u = uniform_by_id(one, d, seed, Stream::init, 0).squeeze(0);
  const Tensor g = normal_by_id(one, {d}, seed, Stream::init, 1).squeeze(0);
  const Tensor a = ((2 * u.to(at::kDouble) - 1) * std::log(config.spread)).exp();              // [d]
  const Tensor b = config.shift * a * table.to(at::kDouble).std(0, false) * g.to(at::kDouble);
  table.copy_(table.to(at::kDouble) * a + b);
  bias.copy_(bias.to(at::kDouble) - scale.to(at::kDouble) * b / a);  // w e + c = (w / a) e' + (c - w b / a)
  scale.copy_(scale.to(at::kDouble) / a);

  const double change = largest_logit_change(model, *out);
  if (!(change <= 1e-4)) fail("anisotropy: the clean function changed: logits by {:.2e} of their rms (limit 1e-4)", change);
  return out;
}

double largest_logit_change(const LlamaForCausalLM& a, const LlamaForCausalLM& b) {
  const NoGrad no_grad;
  constexpr int64_t kRows = 4, kLength = 32;
  const int64_t V = a.config().vocab_size, L = std::min(kLength, a.config().max_position_embeddings);
  const Tensor u = uniform_by_id(at::arange(kRows), L, 0, Stream::eval, 0).to(at::kDouble);
  const Tensor ids = (u * static_cast<double>(V)).floor().to(at::kLong).clamp_max(V - 1);  // [4, L]
  const auto logits = [&](const LlamaForCausalLM& model) {
    return model(ids.to(model.embedding_weight().device())).to(at::kCPU, at::kDouble);
  };
  const Tensor before = logits(a), after = logits(b);
  return ((before - after).abs().max() / before.square().mean().sqrt()).item<double>();
}

SignalToNoise signal_to_noise(const models::EmbeddingNoise& noise, const Tensor& table, int64_t first_image_row) {
  const NoGrad no_grad;
  const models::NoiseSchedule schedule = noise.config().schedule;
  const double path = models::alpha_at(schedule, 0.5) / models::sigma_at(schedule, 0.5);
  const Tensor rows = table.narrow(0, first_image_row, table.size(0) - first_image_row).to(at::kDouble);
  const Tensor ratio = path * rows.std(0, false) / noise.deviation().to(at::kDouble);
  return {ratio.min().item<double>(), ratio.median().item<double>(), ratio.max().item<double>()};
}

}  // namespace fewstep
