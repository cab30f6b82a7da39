#include "src/decoding/window.h"

#include "src/decoding/law.h"
#include "src/tensor/ops.h"

namespace fewstep::decoding {
namespace {

// x [B, N, ...] at index int64 [B, W] -> [B, W, ...]
Tensor at_slots(const Tensor& x, const Tensor& index) {
  const int64_t B = x.size(0), N = x.size(1);
  const Tensor flat = (index + at::arange(B, index.options()).unsqueeze(1) * N).flatten();
  auto shape = x.sizes().vec();
  shape[1] = index.size(1);
  return x.flatten(0, 1).index_select(0, flat).view(shape);
}

}  // namespace

Tensor behind(const Tensor& count, int64_t slots) {
  const auto options = count.options();
  const Tensor slot = (at::arange(slots, options) + count.unsqueeze(1)).clamp_max(slots - 1);
  return (slot + at::arange(count.size(0), options).unsqueeze(1) * slots).flatten();
}

Tensor slots_of(const Tensor& x, const Tensor& flat) { return x.flatten(0, 1).index_select(0, flat).view(x.sizes()); }

Window::Window(const ImageModel& model, const DecoderOptions& options, const models::EmbeddingNoise* noise,
               const std::vector<double>& times, const DecoderRandomness& randomness, int64_t batch)
    : model_(model), options_(options), noise_(noise), forced_(model.forced()), first_draft_(randomness.first_draft()) {
  const Tensor table = model.table();
  const auto integers = forced_.options();
  const int64_t W = options.window;
  draft = at::zeros({batch, W}, integers), level = at::zeros({batch, W}, integers), age = at::zeros({batch, W}, integers);
  if (options.coupling != Coupling::gumbel && options.kind != DecoderKind::jacobi)
    law = at::zeros({batch, W, model.codes()}, table.options().dtype(law_type(table)));
  if (law.defined() && (options.kind == DecoderKind::sjd2 || options.refill == Refill::uniform)) {
    even_ = at::zeros({model.codes()}, law.options());
    even_.narrow(0, 0, model.free_codes()).fill_(1.0 / static_cast<double>(model.free_codes()));
  }
  if (times.size() > 1) {
    // A step from t_k to t_k-1 is z <- decay z + gain z_0.
    const auto K = static_cast<int64_t>(times.size()) - 1;
    const Tensor t = at::tensor(times, at::kDouble).to(table.options());
    const Tensor one = at::ones({K, 1}, t.options()), none = at::zeros_like(one);
    const auto by_level = [&](const Tensor& z, const Tensor& z0) {
      return at::cat({none.narrow(0, 0, 1), noise->denoise(z, z0, t.narrow(0, 1, K), t.narrow(0, 0, K))});
    };
    decay_ = by_level(one, none), gain_ = by_level(none, one);
    first_noise_ = randomness.normal(table.size(1)).to(table.options());
    noisy = at::zeros({batch, W, table.size(1)}, table.options());
  }
  fill(at::full({batch}, W, integers), at::zeros({batch}, integers), W);
}

Tensor Window::inputs(int64_t width) const {
  const Tensor x = draft.narrow(1, 0, width);
  const Tensor clean = model_.table().index_select(0, x.flatten()).view({x.size(0), width, -1});
  if (!noisy.defined()) return clean;
  return at::where(level.narrow(1, 0, width).gt(0).unsqueeze(2), noise_->denormalise(noisy.narrow(1, 0, width)), clean);
}

void Window::update(const Tensor& y, const Tensor& p) {
  const int64_t W = y.size(1);
  Tensor x = draft.narrow(1, 0, W), k = level.narrow(1, 0, W);
  age.narrow(1, 0, W).add_(1);
  const Tensor is_noisy = k.gt(0);
  if (noisy.defined()) {
    const Tensor table = model_.table();
    const Tensor target = options_.denoise_with == DenoiseWith::expected
                              ? at::matmul(p.to(table.options()), table)
                              : table.index_select(0, y.flatten()).view({y.size(0), W, -1});
    const auto of_level = [&](const Tensor& t) { return t.index_select(0, k.flatten()).view({y.size(0), W, 1}); };
    Tensor z = noisy.narrow(1, 0, W);  // not read any more once a slot is clean: then its draft's embedding is the input
    z.mul_(of_level(decay_)).add_(noise_->normalise(target).mul_(of_level(gain_)));
    k.copy_((k - 1).clamp_min_(0));
  }
  const bool all = options_.refine;
  x.copy_(all ? y : at::where(is_noisy, y, x));
  if (!law.defined()) return;
  if (all && W == law.size(1)) {  // shift() makes a copy of it anyway
    law = p;
    return;
  }
  Tensor q = law.narrow(1, 0, W);
  q.copy_(all ? p : at::where(is_noisy.unsqueeze(2), p, q));
}

void Window::shift(const Tensor& count, const Tensor& start, int64_t most) {
  const int64_t W = draft.size(1);
  const Tensor from = behind(count, W);
  for (Tensor* t : {&draft, &law, &level, &age, &noisy})
    if (t->defined()) *t = slots_of(*t, from);
  fill(count, start, std::min(most, W));
}

// New slots: the last count [B] of each row, all of them among the last `most`, which are the only ones touched.
void Window::fill(const Tensor& count, const Tensor& start, int64_t most) {
  const int64_t W = draft.size(1), last = forced_.size(0) - 1, K = decay_.defined() ? decay_.size(0) - 1 : 0;
  const auto newest = [&](const Tensor& t) { return t.narrow(1, W - most, most); };
  const Tensor j = at::arange(W - most, W, draft.options());
  const Tensor fresh = (j + count.unsqueeze(1)).ge(W), place = (start.unsqueeze(1) + j).clamp_max(last);  // [B, most]
  const int64_t codes = model_.free_codes();
  Tensor x = (first_draft_.gather(1, place) * static_cast<double>(codes)).to(at::kLong).clamp_max(codes - 1);
  if (options_.refill == Refill::left && !noisy.defined()) {  // the last slot that is not new; the first window has none
    const Tensor old = W - count.unsqueeze(1);
    x = at::where(old.gt(0), draft.gather(1, (old - 1).clamp_min(0)), x);
  }
  const Tensor forced = forced_.index_select(0, place.flatten()).view_as(place), is_forced = forced.ge(0);
  x = at::where(is_forced, forced, x);
  const auto put = [&](const Tensor& t, const Tensor& value) {
    newest(t).copy_(at::where(t.dim() == 3 ? fresh.unsqueeze(2) : fresh, value, newest(t)));
  };
  put(draft, x);
  newest(age).masked_fill_(fresh, 0);
  if (noisy.defined()) put(level, is_forced.logical_not() * K), put(noisy, at_slots(first_noise_, place));
  if (law.defined()) put(law, first_law(x, is_forced));
}

// What drafts x [B, L] of new slots are credited with: [B, L, K], or the same for all of them.
Tensor Window::first_law(const Tensor& x, const Tensor& is_forced) const {
  if (even_.defined() && model_.free_codes() == model_.codes()) return even_;
  const Tensor one_hot = at::zeros({x.size(0), x.size(1), model_.codes()}, law.options()).scatter_(2, x.unsqueeze(2), 1.0);
  return even_.defined() ? at::where(is_forced.unsqueeze(2), one_hot, even_) : one_hot;
}

void Window::keep(const Tensor& rows) {
  for (Tensor* t : {&draft, &law, &level, &age, &noisy, &first_draft_, &first_noise_})
    if (t->defined()) *t = t->index_select(0, rows);
}

}  // namespace fewstep::decoding
