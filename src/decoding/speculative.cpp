// Jacobi, speculative Jacobi (SJD) and speculative Jacobi-denoising decoding (SJD2): one loop, in which SJD is SJD2 without
// noise levels.
//
// Exactness. Let F_i be all randomness of slots left of i over all passes. The law q_i a draft was drawn from, the law p_i it
// meets, and the pass that verifies it depend on F_i only, and given F_i the draft is ~ q_i: accept-or-resample makes it ~ p_i,
// and p_i is the autoregressive law as long as everything left of i was clean and stays. `gated` keeps that by stopping behind
// the first slot whose input was noisy; `published` verifies on, hence is not exact.
#include "src/decoding/recorder.h"
#include "src/decoding/rules.h"
#include "src/decoding/session.h"
#include "src/decoding/window.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep::decoding {
namespace {

// Rows that are done are dropped once they are half of the batch.
void drop_finished(DecodingSession& session, Window& window, Rule& rule, DecoderRandomness& randomness, Recorder& recorder, int64_t N) {
  std::vector<int64_t> open;
  for (int64_t b = 0; b < session.batch(); ++b)
    if (session.committed()[static_cast<size_t>(b)] < N) open.push_back(b);
  if (open.empty() || 2 * static_cast<int64_t>(open.size()) > session.batch()) return;
  const Tensor rows = at::tensor(open, at::kLong), on_device = rows.to(window.draft.device());
  session.keep(open), window.keep(on_device), rule.keep(on_device), randomness.keep(rows), recorder.keep(on_device);
}

}  // namespace

Decoded decode_window(const ImageModel& model, const Tensor& prompts, const Tensor& ids, uint64_t seed, const DecoderOptions& options,
                      const models::EmbeddingNoise* noise, const PassObserver& observe) {
  const Inference inference;
  const int64_t B = prompts.size(0), N = model.length();
  const std::vector<double> times = noise ? models::level_times(noise->config(), options.steps) : std::vector<double>{0.0};
  DecodingSession session(model, prompts, {.guidance = options.sampling.guidance, .window = options.window,
                                           .most_pending = options.window + 1, .noise = noise, .times = times});
  DecoderRandomness randomness(ids, seed, N, prompts.options());
  Window window(model, options, noise, times, randomness, B);
  Rule rule(model, options, randomness);
  Recorder recorder(B, N, prompts.options());
  for (int64_t pass = 0; !session.finished(); ++pass) {
    const int64_t W = session.window();
    const Tensor logits = session.pass(window.inputs(W), noise ? window.level.narrow(1, 0, W) : Tensor());     // [B, W + 1, K]
    const Tensor start = session.start();
    const Tensor position = (start.unsqueeze(1) + at::arange(W + 1, start.options())).clamp_max(N - 1);        // [B, W + 1]
    const Tensor p = rule.laws(logits, position);
    const Tensor u = randomness.of_pass(pass);
    const Verdict verdict = rule.judge(window, p, u.gather(1, position), u.gather(1, position + N + 1));
    const Commit commit = rule.commit(window, verdict, start, position);
    const int64_t most = session.commit(verdict.y, commit.count, commit.valid);
    recorder.add(pass, verdict, p, commit, start, window.age.narrow(1, 0, W), most);
    window.update(verdict.y.narrow(1, 0, W), p.narrow(1, 0, W));
    window.shift(commit.count, session.start(), most);
    rule.shift(commit.count, session.committed(), most);
    if (observe) recorder.show(observe, pass, window, session.start());
    drop_finished(session, window, rule, randomness, recorder, N);
  }
  return recorder.finish(session.forward_seconds());
}

}  // namespace fewstep::decoding
