// Autoregressive decoding, one free token a pass, and the likelihood of given tokens under the same law.
#include "src/decoding/guidance.h"
#include "src/decoding/recorder.h"
#include "src/decoding/rules.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep::decoding {

Decoded decode_autoregressive(const ImageModel& model, const Tensor& prompts, const Tensor& ids, uint64_t seed, const DecoderOptions& options) {
  const Inference inference;
  const int64_t B = prompts.size(0), N = model.length();
  const bool guided = options.sampling.guidance != 1;
  const DecoderRandomness randomness(ids, seed, N, prompts.options());
  const Rule rule(model, options, randomness);
  const Tensor uniforms = randomness.autoregressive();  // [B, N]
  const Tensor forced = model.forced().to(at::kCPU);
  const int64_t* structural = forced.const_data_ptr<int64_t>();
  models::KvCache cache = model.make_cache(guided ? 2 * B : B, prompts.size(1) + N);
  Recorder recorder(B, N, prompts.options());
  double forward_seconds = 0;
  Tensor input = model.embed_prompts(with_unconditional(model, prompts, guided));
  for (int64_t i = 0, pass = 0; i < N; ++pass) {
    const auto begin = std::chrono::steady_clock::now();
    const Tensor hidden = model.hidden(input, {.cache = &cache});                                      // [B', L, d]
    const Tensor l = guide(model.code_logits(hidden.narrow(1, -1, 1)), options.sampling.guidance);     // [B, 1, K]
    forward_seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    const Tensor place = at::full({B, 1}, i, prompts.options()), p = rule.laws(l, place);
    Tensor code = options.coupling == Coupling::gumbel ? gumbel_argmax(p, randomness.gumbel(i, 1, model.codes()))
                                                       : draw(p, uniforms.narrow(1, i, 1));
    recorder.add(pass, place, code, p);
    // Structural tokens are known: they are fed together with the token before them.
    for (++i; i < N && structural[i] >= 0; ++i) {
      const Tensor known = at::full({B, 1}, structural[i], prompts.options());
      recorder.add(pass, at::full({B, 1}, i, prompts.options()), known, at::one_hot(known, model.codes()).to(p.options()));
      code = at::cat({code, known}, 1);
    }
    input = embed_codes(model, code, guided);
  }
  return recorder.finish(forward_seconds);
}

Likelihood likelihood(const ImageModel& model, const Tensor& prompts, const Tensor& codes, const SamplingOptions& sampling) {
  const NoGrad no_grad;
  const int64_t P = prompts.size(1), N = model.length();
  const bool guided = sampling.guidance != 1;
  const Tensor images = embed_codes(model, codes.narrow(1, 0, N - 1), guided);
  const Tensor hidden = model.hidden(at::cat({model.embed_prompts(with_unconditional(model, prompts, guided)), images}, 1), {});
  Tensor l = guide(model.code_logits(hidden.narrow(1, P - 1, N)), sampling.guidance).narrow(-1, 0, model.free_codes());
  const Tensor structural = model.forced().ge(0), code = codes.clamp_max(model.free_codes() - 1).unsqueeze(-1);
  const Tensor allowed = code_law(l, sampling).gather(-1, code).squeeze(-1).gt(0);
  if (sampling.temperature > 0 && sampling.temperature != 1) l = l / sampling.temperature;
  const Tensor nll = -at::log_softmax(l.to(at::kDouble), -1).gather(-1, code).squeeze(-1);
  return {.nll = nll.masked_fill(structural, 0), .outside = allowed.logical_not().logical_and(structural.logical_not())};
}

}  // namespace fewstep::decoding
