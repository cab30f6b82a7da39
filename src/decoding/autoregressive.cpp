#include "src/decoding/autoregressive.h"

#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "src/tensor/shape.h"

namespace fewstep::decoding {

Tensor code_probabilities(const Tensor& logits, const models::SequenceLayout& layout, const SamplingOptions& options) {
  Tensor l = logits.narrow(-1, layout.image_id(0), layout.codebook).to(at::kFloat);  // [B, K]
  if (options.temperature <= 0) return at::zeros_like(l).scatter_(-1, l.argmax(-1, true), 1.0);
  if (options.temperature != 1) l = l / options.temperature;
  if (options.top_k > 0 && options.top_k < layout.codebook) {
    const Tensor smallest = std::get<0>(l.topk(options.top_k, -1)).select(-1, -1).unsqueeze(-1);
    l = l.masked_fill(l.lt(smallest), -std::numeric_limits<float>::infinity());
  }
  Tensor p = at::softmax(l, -1);
  if (options.top_p < 1) {
    const auto [sorted, order] = p.sort(-1, true);
    const Tensor before = sorted.cumsum(-1) - sorted;  // mass in front of each: the first is always kept
    p = at::zeros_like(p).scatter_(-1, order, sorted.masked_fill(before.ge(options.top_p), 0));
    p = p / p.sum(-1, true);
  }
  return p;
}

Tensor draw(const Tensor& probabilities, const Tensor& uniforms) {
  const Tensor cumulative = probabilities.to(at::kDouble).cumsum(-1);
  // Scaled by the total, so that rounding can never point behind the last code with mass.
  const Tensor target = uniforms.to(at::kDouble).unsqueeze(-1) * cumulative.narrow(-1, -1, 1);
  return at::searchsorted(cumulative, target, false, true).squeeze(-1).clamp_max(probabilities.size(-1) - 1);
}

Decoded sample_autoregressive(const models::LlamaForCausalLM& model, const models::SequenceLayout& layout,
                              const Tensor& prompts, const Tensor& ids, uint64_t seed, const SamplingOptions& options) {
  const NoGrad no_grad;
  const int64_t B = prompts.size(0), N = layout.image_length();
  const bool guided = options.guidance != 1;
  Tensor rows = prompts;  // conditional rows, then as many unconditional ones
  if (guided) {
    const Tensor null = at::tensor(layout.unconditional_prompt(), prompts.options()).unsqueeze(0).expand({B, -1});
    rows = at::cat({prompts, null});
  }
  models::KvCache cache = model.make_cache(rows.size(0), layout.sequence_length());
  const Tensor uniforms = uniform_by_id(ids, N, seed, Stream::sampling, 0).to(prompts.device());  // [B, N]
  Decoded out{at::empty({B, N}, prompts.options()), 0};
  Tensor input = rows;
  for (int64_t i = 0; i < N; ++i) {
    const Tensor hidden = model.hidden(model.embed(input), {.cache = &cache});  // [B', L, D]
    Tensor l = model.logits(hidden.select(1, -1));                              // [B', V]
    ++out.passes;
    if (guided) {
      const Tensor c = l.narrow(0, 0, B), u = l.narrow(0, B, B);
      l = u + options.guidance * (c - u);
    }
    const Tensor code = draw(code_probabilities(l, layout, options), uniforms.select(1, i));
    out.codes.select(1, i).copy_(code);
    input = (code + layout.image_id(0)).unsqueeze(1);
    if (guided) input = at::cat({input, input});
  }
  return out;
}

}  // namespace fewstep::decoding
