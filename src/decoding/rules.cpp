#include "src/decoding/rules.h"

#include "src/tensor/ops.h"

namespace fewstep::decoding {

// LANTERN (arXiv 2410.03355): a draft may stand for its nearest codes, as long as they add at most delta probability.
struct RelaxedAcceptance {
  Tensor nearest;  // int64 [K, k + 1]: the code itself first
  double delta;

  RelaxedAcceptance(const Tensor& table, int64_t neighbours, double most) : delta(most) {
    const Tensor rows = table.to(at::kDouble), distance = at::cdist(rows, rows);
    distance.fill_diagonal_(-1);  // first, also beside an equal embedding
    nearest = std::get<1>(distance.topk(neighbours + 1, -1, /*largest=*/false));
  }
  // p [B, W, K] with the mass of x's neighbourhood moved onto x [B, W].
  Tensor moved(const Tensor& p, const Tensor& x) const {
    const Tensor around = nearest.index_select(0, x.flatten()).view({x.size(0), x.size(1), -1});  // [B, W, k + 1]
    const Tensor mass = p.gather(2, around);
    const Tensor added = mass.cumsum(2) - mass.narrow(2, 0, 1);
    const Tensor taken = mass.masked_fill(added.gt(delta), 0);
    return p.scatter(2, around, mass - taken).scatter_add(2, x.unsqueeze(2), taken.sum(2, true));
  }
};

Tensor leading(const Tensor& flags) { return flags.to(at::kLong).cumprod(1).sum(1); }

Rule::Rule(const ImageModel& model, const DecoderOptions& options, const DecoderRandomness& randomness)
    : options_(options), forced_(model.forced()), structural_(model.codes() - model.free_codes()), randomness_(randomness) {
  const bool windowed = options.kind != DecoderKind::ar && options.kind != DecoderKind::zipar;
  if (options.coupling == Coupling::gumbel && windowed)
    gumbel_ = randomness.gumbel(0, options.window + 1, model.codes()).to(law_type(model.table()));
  if (options.relaxed_neighbours > 0)
    relaxed_ = std::make_unique<RelaxedAcceptance>(model.table(), std::min(options.relaxed_neighbours, model.free_codes() - 1),
                                                   options.relaxed_delta);
}

Rule::~Rule() = default;

Tensor Rule::laws(const Tensor& logits, const Tensor& position) const {
  const int64_t free = logits.size(-1) - structural_;
  const Tensor p = code_law(logits.narrow(-1, 0, free), options_.sampling);
  if (structural_ == 0) return p;
  const Tensor padded = at::constant_pad_nd(p, {0, structural_});
  const Tensor code = forced_.index_select(0, position.flatten()).view_as(position).unsqueeze(2);
  return at::where(code.ge(0), at::zeros_like(padded).scatter_(2, code.clamp_min(0), 1.0), padded);
}

Verdict Rule::judge(const Window& window, const Tensor& p, const Tensor& accept, const Tensor& again) const {
  if (options_.coupling != Coupling::gumbel && options_.kind != DecoderKind::jacobi) return speculate(window, p, accept, again);
  Tensor y;
  if (options_.coupling == Coupling::gumbel)
    y = gumbel_argmax(p, gumbel_.narrow(1, 0, p.size(1)));
  else
    y = draw(p, again);
  return {y, y.narrow(1, 0, y.size(1) - 1).eq(window.draft.narrow(1, 0, y.size(1) - 1))};
}

// Accept with probability min(1, p / q), else draw from the residual. Behind the slot that ends the prefix, a draft is drawn
// afresh from p or, with maximal coupling, treated in the same way.
Verdict Rule::speculate(const Window& window, const Tensor& p, const Tensor& accept, const Tensor& again) const {
  const int64_t W = p.size(1) - 1;
  const Tensor x = window.draft.narrow(1, 0, W), q = window.law.narrow(1, 0, W);
  const Tensor here = p.narrow(1, 0, W), target = relaxed_ ? relaxed_->moved(here, x) : here;
  const auto of_draft = [&](const Tensor& law) { return law.gather(2, x.unsqueeze(2)).squeeze(2); };
  const Tensor kept = (accept.narrow(1, 0, W) * of_draft(q)).lt(of_draft(target));
  Tensor law = residual(target, q), stays = kept;
  if (options_.coupling == Coupling::none) {
    const Tensor tail = at::arange(W, x.options()).gt(leading(passes_on(window, kept)).unsqueeze(1));
    law = at::where(tail.unsqueeze(2), here, law);
    stays = kept.logical_and(tail.logical_not());
  }
  const Tensor y = draw(at::cat({law, p.narrow(1, W, 1)}, 1), again), drawn = y.narrow(1, 0, W);
  drawn.copy_(at::where(stays, x, drawn));
  return {y, kept};
}

// May the slots behind this one be verified as well?
Tensor Rule::passes_on(const Window& window, const Tensor& kept) const {
  if (options_.kind != DecoderKind::sjd2 || options_.mode != Sjd2Mode::gated) return kept;
  return kept.logical_and(window.level.narrow(1, 0, kept.size(1)).eq(0));
}

Commit Rule::commit(const Window& window, const Verdict& verdict, const Tensor& start, const Tensor& position) const {
  const int64_t W = verdict.kept.size(1), N = forced_.size(0);
  const Tensor stop = leading(passes_on(window, verdict.kept));
  Tensor count = stop + 1;
  if (structural_ > 0) {  // known tokens behind it are decided as well
    const Tensor known = forced_.index_select(0, position.flatten()).view_as(position).ge(0);
    count = leading(at::arange(W + 1, start.options()).le(stop.unsqueeze(1)).logical_or(known));
  }
  // In front of `stop` all is clean, but for published sjd2. (A known token may follow the noisy slot that ends a gated prefix:
  // that slot's keys must not slip in before it.)
  Tensor valid = stop;
  if (window.noisy.defined() && options_.mode == Sjd2Mode::published && options_.noisy_kv == NoisyKv::refeed)
    valid = leading(verdict.kept.logical_and(window.level.narrow(1, 0, W).eq(0)));
  return {.count = count.minimum(N - start), .valid = valid, .stop = stop};
}

void Rule::shift(const Tensor& count, const std::vector<int64_t>& start, int64_t most) {
  if (!gumbel_.defined()) return;
  const int64_t slots = gumbel_.size(1), fresh = std::min(most, slots);
  gumbel_ = slots_of(gumbel_, behind(count, slots));
  std::vector<int64_t> first = start;  // rows that moved less get again what they have
  for (int64_t& s : first) s += slots - fresh;
  gumbel_.narrow(1, slots - fresh, fresh).copy_(randomness_.gumbel(first, fresh, gumbel_.size(2)));
}

void Rule::keep(const Tensor& rows) {
  if (gumbel_.defined()) gumbel_ = gumbel_.index_select(0, rows);
}

}  // namespace fewstep::decoding
