// ZipAR (He et al. 2024, arXiv 2412.04062): a row of the grid starts as soon as the row above it is `window` tokens ahead, so
// several rows are decoded in one pass. Lossy: a token does not see the end of the row above, and a row's first token is
// predicted from a stand-in for the last token of the row above, the newest one there is.
#include "src/decoding/guidance.h"
#include "src/decoding/recorder.h"
#include "src/decoding/rules.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep::decoding {
namespace {

// Which places a pass feeds and which it predicts: the same for every image.
class RowSchedule {
 public:
  RowSchedule(int64_t slots, int64_t width, int64_t lead)
      : width_(width), lead_(std::min(lead, width)), done_(static_cast<size_t>(slots / width), 0), fed_(static_cast<size_t>(slots), false) {}

  struct Step {
    std::vector<int64_t> fed;      // places whose token is an input; -1: the prompt's last token
    std::vector<int64_t> source;   // the place its token is taken from: itself, or the stand-in's
    std::vector<int64_t> predicts; // the place each input predicts; -1: none, it only enters the cache
  };
  bool finished() const { return done_.back() == width_; }
  Step next() {
    Step step;
    const auto h = static_cast<int64_t>(done_.size());
    std::vector<int64_t> active;
    for (int64_t r = 0; r < h; ++r) {
      const int64_t done = done_[static_cast<size_t>(r)], above = r == 0 ? width_ : done_[static_cast<size_t>(r - 1)];
      const int64_t last = r * width_ + width_ - 1;
      if (done == width_ && !fed_[static_cast<size_t>(last)] && (r + 1 == h || done_[static_cast<size_t>(r + 1)] > 0)) {
        push(step, last, last, -1);  // its row below went on with a stand-in: now the real one enters the cache
        fed_[static_cast<size_t>(last)] = true;
      }
      if (done == width_ || above < lead_) continue;
      const int64_t place = r * width_ + done, left = place - 1;
      const bool known = done > 0 || above == width_;
      push(step, left, known ? left : (r - 1) * width_ + above - 1, place);
      if (left >= 0 && known) fed_[static_cast<size_t>(left)] = true;
      active.push_back(r);
    }
    for (int64_t r : active) ++done_[static_cast<size_t>(r)];
    return step;
  }

 private:
  static void push(Step& s, int64_t fed, int64_t source, int64_t predicts) {
    s.fed.push_back(fed), s.source.push_back(source), s.predicts.push_back(predicts);
  }
  int64_t width_, lead_;
  std::vector<int64_t> done_;  // tokens decided in each row
  std::vector<bool> fed_;      // places whose own token is in the cache
};

}  // namespace

Decoded decode_row_parallel(const ImageModel& model, const Tensor& prompts, const Tensor& ids, uint64_t seed, const DecoderOptions& options) {
  const Inference inference;
  const int64_t B = prompts.size(0), P = prompts.size(1), N = model.length();
  const bool guided = options.sampling.guidance != 1;
  const auto integers = prompts.options();
  const DecoderRandomness randomness(ids, seed, N, integers);
  const Rule rule(model, options, randomness);
  const Tensor uniforms = randomness.autoregressive();
  models::KvCache cache = model.make_cache(guided ? 2 * B : B, P + N);
  for (auto* side : {&cache.keys, &cache.values})
    for (Tensor& t : *side) t.zero_();
  const Tensor ids_in = with_unconditional(model, prompts, guided);
  Tensor codes = at::zeros({B, N}, integers), filled = at::zeros({P + N}, integers.dtype(at::kBool));
  if (P > 1) model.hidden(model.embed_prompts(ids_in.narrow(1, 0, P - 1)), {.cache = &cache});
  filled.narrow(0, 0, P).fill_(true);
  Recorder recorder(B, N, integers);
  double forward_seconds = 0;
  RowSchedule schedule(N, model.row_length(), options.window);
  for (int64_t pass = 0; !schedule.finished(); ++pass) {
    const auto step = schedule.next();
    const auto L = static_cast<int64_t>(step.fed.size());
    const Tensor fed = at::tensor(step.fed, at::kLong).to(integers.device()), source = at::tensor(step.source, at::kLong).to(integers.device());
    const Tensor input = pass == 0 ? model.embed_prompts(ids_in.narrow(1, P - 1, 1))
                                   : embed_codes(model, codes.index_select(1, source), guided);
    const Tensor position = (fed + P).unsqueeze(0);  // [1, L]
    filled.index_fill_(0, position.flatten(), true);
    const Tensor mask = at::arange(P + N, integers).le(position.view({L, 1})).logical_and(filled).view({1, 1, L, P + N});
    const auto begin = std::chrono::steady_clock::now();
    const Tensor all = position.expand({input.size(0), L});
    const Tensor hidden = model.hidden(input, {.positions = all, .mask = mask, .cache = &cache, .slots = all, .keys = P + N});
    const Tensor l = guide(model.code_logits(hidden), options.sampling.guidance);
    forward_seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    const Tensor predicts = at::tensor(step.predicts, at::kLong).to(integers.device());
    const Tensor chosen = predicts.ge(0).nonzero().flatten();
    const Tensor place = predicts.index_select(0, chosen).unsqueeze(0).expand({B, -1});
    const Tensor p = rule.laws(l.index_select(1, chosen), place);
    const Tensor code = draw(p, uniforms.gather(1, place));
    codes.scatter_(1, place, code);
    recorder.add(pass, place, code, p);
  }
  return recorder.finish(forward_seconds);
}

}  // namespace fewstep::decoding
