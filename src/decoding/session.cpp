#include "src/decoding/session.h"

#include <chrono>

#include "src/base/error.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::decoding {
namespace {

// rows [B, L, d] picked by index int64 [B, M] -> [B, M, d]. One copy of whole rows.
Tensor pick(const Tensor& rows, const Tensor& index) {
  const auto [B, L, d] = dims<3>(rows);
  const Tensor flat = (index + at::arange(B, index.options()).unsqueeze(1) * L).flatten();
  return rows.reshape({B * L, d}).index_select(0, flat).view({B, index.size(1), d});
}

}  // namespace

// What one pass feeds.
struct DecodingSession::Feed {
  int64_t window;           // slots behind the pending tokens
  int64_t pending, length;  // most pending tokens of a row; fed positions L = pending + window
  int64_t keys;             // places of the cache that attention looks at
  bool aligned;             // all rows have `pending` tokens waiting: no row needs places of its own
  Tensor waiting;           // int64 [B]: pending tokens
  Tensor query, position;   // int64 [L]: 0 ... L - 1; [B, L]: their positions, the prompt's first is 0
};

DecodingSession::DecodingSession(const ImageModel& model, const Tensor& prompts, const SessionOptions& options)
    : model_(model), options_(options), prompt_length_(prompts.size(1)) {
  const int64_t B = prompts.size(0), N = model.length();
  Tensor ids = prompts;
  if (options.guidance != 1)
    ids = at::stack({prompts, model.unconditional_prompt().unsqueeze(0).expand_as(prompts)}, 1).flatten(0, 1);
  prompt_embeds_ = model.embed_prompts(ids);
  if (options.noise && options.noise->config().timestep_tokens != models::TimestepTokens::none && options.times.size() > 1) {
    const bool per_slot = options.noise->config().timestep_tokens == models::TimestepTokens::per_slot;
    timestep_places_ = per_slot ? options.window : static_cast<int64_t>(options.times.size()) - 1;
  }
  const int64_t structural = model.forced().ge(0).sum().item<int64_t>();
  const int64_t waiting = options.most_pending + std::min<int64_t>(structural, model.row_length());
  cache_ = model.make_cache(ids.size(0), timestep_places_ + prompt_length_ + N + options.window + waiting);
  for (auto* side : {&cache_.keys, &cache_.values})
    for (Tensor& t : *side) t.zero_();  // a masked place must hold finite numbers
  committed_.assign(static_cast<size_t>(B), 0);
  cached_.assign(static_cast<size_t>(B), -prompt_length_);
  codes_ = at::zeros({B, N + 1}, prompts.options());
  start_ = at::zeros({B}, prompts.options());
  seen_ = at::zeros({}, cache_.keys[0].options());
  unseen_ = at::full({}, -std::numeric_limits<double>::infinity(), seen_.options());
  if (timestep_places_ > 0) remember_timestep_tokens();
}

bool DecodingSession::finished() const {
  return std::all_of(committed_.begin(), committed_.end(), [&](int64_t n) { return n >= model_.length(); });
}

int64_t DecodingSession::window() const {
  const int64_t least = *std::min_element(committed_.begin(), committed_.end());
  return std::clamp<int64_t>(model_.length() - least, 0, options_.window);
}

Tensor DecodingSession::pairs(const Tensor& t) const {
  if (options_.guidance == 1) return t;
  auto shape = t.sizes().vec();
  shape.insert(shape.begin() + 1, 2);
  return t.unsqueeze(1).expand(shape).flatten(0, 1);
}

Tensor DecodingSession::on_device(const std::vector<int64_t>& values) const { return at::tensor(values, at::kLong).to(codes_.device()); }

// A timestep token sees only itself: its keys and values depend on nothing but its level, so they are made once. This is what
// recomputing them in every pass would give, without a longer query.
void DecodingSession::remember_timestep_tokens() {
  const std::vector<double> noisy(options_.times.begin() + 1, options_.times.end());
  const auto K = static_cast<int64_t>(noisy.size());
  const Tensor t = at::tensor(noisy, at::kDouble).to(prompt_embeds_.options());
  timestep_bank_ = model_.make_cache(K, 1);
  const Tensor zero = at::zeros({K, 1}, codes_.options());
  model_.hidden(options_.noise->timestep_embedding(t).unsqueeze(1),
                {.positions = zero, .mask = at::ones({1, 1, 1, 1}, zero.options().dtype(at::kBool)), .cache = &timestep_bank_, .slots = zero, .keys = 1});
  if (options_.noise->config().timestep_tokens != models::TimestepTokens::shared_suffix) return;
  for (size_t i = 0; i < cache_.keys.size(); ++i) {  // [K, H, 1, D] -> [1, H, K, D], the same for every row
    cache_.keys[i].narrow(2, 0, K).copy_(timestep_bank_.keys[i].transpose(0, 2));
    cache_.values[i].narrow(2, 0, K).copy_(timestep_bank_.values[i].transpose(0, 2));
  }
}

// per_slot: place j holds the token of slot j's level, turned to slot j's position.
void DecodingSession::place_timestep_tokens(const Feed& f, const Tensor& levels) {
  if (f.window == 0 || options_.noise->config().timestep_tokens != models::TimestepTokens::per_slot) return;
  const Tensor level = pairs((levels - 1).clamp_min(0)).flatten();                                       // [B' W]
  const Tensor at_slot = start_.unsqueeze(1) + at::arange(f.window, start_.options()) + prompt_length_;
  const Tensor positions = pairs(at_slot).clamp_max(prompt_length_ + model_.length() - 1);               // [B', W]
  const int64_t rows = positions.size(0);
  for (size_t i = 0; i < cache_.keys.size(); ++i) {
    const auto of_levels = [&](const Tensor& bank) {  // [K, H, 1, D] -> [B', H, W, D]
      return bank.squeeze(2).index_select(0, level).view({rows, f.window, bank.size(1), bank.size(3)}).transpose(1, 2);
    };
    cache_.keys[i].narrow(2, 0, f.window).copy_(model_.rotate(of_levels(timestep_bank_.keys[i]), positions));
    cache_.values[i].narrow(2, 0, f.window).copy_(of_levels(timestep_bank_.values[i]));
  }
}

// Pending tokens, then the window right behind each row's last one: [B', L, d].
Tensor DecodingSession::inputs_of(const Feed& f, const Tensor& inputs) const {
  Tensor pending;
  if (prompt_embeds_.defined()) {
    pending = prompt_embeds_;
  } else {
    const Tensor at_code = (f.position.narrow(1, 0, f.pending) - prompt_length_).clamp_(0, model_.length() - 1);
    const Tensor code = codes_.gather(1, at_code);
    pending = pairs(model_.table().index_select(0, code.flatten()).view({batch(), f.pending, -1}));
  }
  if (f.window == 0) return pending;
  const Tensor all = at::cat({pending, pairs(inputs.narrow(1, 0, f.window).to(pending.options()))}, 1);
  if (f.aligned) return all;
  const Tensor waiting = f.waiting.unsqueeze(1), l = f.query.unsqueeze(0);
  const Tensor index = at::where(l < waiting, l, l + (f.pending - waiting)).clamp_max(f.length - 1);  // [G, L]
  return pick(all, pairs(index));
}

// Hidden states [B', L, d] of the tokens left of slots 0 ... W: [B', W + 1, d].
Tensor DecodingSession::predicting(const Feed& f, const Tensor& hidden) const {
  if (f.aligned) return hidden.narrow(1, f.pending - 1, f.window + 1);
  return pick(hidden, pairs((f.waiting.unsqueeze(1) - 1) + f.query.narrow(0, 0, f.window + 1)));
}

// Additive mask: causal by position; a noisy slot also sees its level's timestep token.
Tensor DecodingSession::mask_of(const Feed& f, const Tensor& levels) const {
  const Tensor place = at::arange(f.keys - timestep_places_, f.query.options());
  Tensor visible = place.le(f.position.unsqueeze(2));  // [G, L, P + ...]
  if (timestep_places_ > 0) {
    Tensor own = at::zeros({batch(), f.length, timestep_places_}, visible.options());
    if (levels.defined() && f.window > 0) {
      const Tensor slot = f.query.unsqueeze(0) - f.waiting.unsqueeze(1);                // [G, L]: slot of a query, < 0 pending
      const Tensor level = levels.narrow(1, 0, f.window).gather(1, slot.clamp(0, f.window - 1));
      const Tensor noisy = slot.ge(0).logical_and(slot.lt(f.window)).logical_and(level.gt(0)).unsqueeze(2);
      const bool per_slot = options_.noise->config().timestep_tokens == models::TimestepTokens::per_slot;
      const Tensor wanted = (per_slot ? slot : level - 1).unsqueeze(2);
      own = noisy.logical_and(at::arange(timestep_places_, wanted.options()).eq(wanted));
    }
    visible = at::cat({own, visible}, 2);
  }
  const Tensor mask = at::where(visible, seen_, unseen_).unsqueeze(1);
  return batch() == 1 ? mask : pairs(mask);
}

DecodingSession::Feed DecodingSession::plan(int64_t window) const {
  Feed f{.window = window, .pending = 0, .length = 0, .keys = 0, .aligned = false, .waiting = {}, .query = {}, .position = {}};
  std::vector<int64_t> waiting;
  for (size_t b = 0; b < committed_.size(); ++b) waiting.push_back(committed_[b] - cached_[b]);
  f.pending = *std::max_element(waiting.begin(), waiting.end());
  f.aligned = *std::min_element(waiting.begin(), waiting.end()) == f.pending;
  f.length = f.pending + window;
  f.keys = timestep_places_ + prompt_length_ + *std::max_element(cached_.begin(), cached_.end()) + f.length;
  f.waiting = on_device(waiting), f.query = at::arange(f.length, codes_.options());
  f.position = on_device(cached_).unsqueeze(1) + at::arange(prompt_length_, prompt_length_ + f.length, codes_.options());
  return f;
}

Tensor DecodingSession::pass(const Tensor& inputs, const Tensor& levels) {
  const auto begin = std::chrono::steady_clock::now();
  const Feed f = plan(inputs.size(1));
  if (levels.defined()) place_timestep_tokens(f, levels);
  const Tensor positions = pairs(f.position);  // [B', L]
  // Queries behind a row's last slot may stand past the longest sequence; nobody reads them.
  const Tensor hidden = model_.hidden(inputs_of(f, inputs), {.positions = positions.clamp_max(prompt_length_ + model_.length() - 1),
                                                            .mask = mask_of(f, levels), .cache = &cache_,
                                                            .slots = positions + timestep_places_, .keys = f.keys});
  Tensor l = model_.code_logits(predicting(f, hidden));  // [B', W + 1, K]
  if (options_.guidance != 1) {
    l = l.view({batch(), 2, f.window + 1, -1});
    const Tensor c = l.select(1, 0), u = l.select(1, 1);
    l = (c - u).mul_(options_.guidance).add_(u);
  }
  prompt_embeds_ = Tensor();
  forward_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return l;
}

int64_t DecodingSession::commit(const Tensor& codes, const Tensor& count, const Tensor& valid) {
  const int64_t N = model_.length();
  const Tensor slot = at::arange(codes.size(1), codes.options());
  const Tensor place = at::where(slot < count.unsqueeze(1), start_.unsqueeze(1) + slot, N).clamp_max(N);
  codes_.scatter_(1, place, codes);
  const Tensor both = at::stack({count, valid}).to(at::kCPU);
  const int64_t* n = both.const_data_ptr<int64_t>();
  const size_t B = committed_.size();
  for (size_t b = 0; b < B; ++b) {
    if (n[b] == 0) continue;  // a finished row
    cached_[b] = committed_[b] + std::min(n[B + b], n[b] - 1);  // the newest token is fed next time, whatever comes
    committed_[b] += n[b];
  }
  start_ = start_ + count;
  return *std::max_element(n, n + B);
}

void DecodingSession::keep(const std::vector<int64_t>& rows) {
  const Tensor index = on_device(rows);
  std::vector<int64_t> committed, cached;
  for (int64_t r : rows) {
    committed.push_back(committed_[static_cast<size_t>(r)]);
    cached.push_back(cached_[static_cast<size_t>(r)]);
  }
  committed_ = committed, cached_ = cached;
  codes_ = codes_.index_select(0, index), start_ = start_.index_select(0, index);
  const int64_t each = options_.guidance == 1 ? 1 : 2;
  const Tensor cache_rows = (index.unsqueeze(1) * each + at::arange(each, index.options())).flatten();
  for (auto* side : {&cache_.keys, &cache_.values})
    for (Tensor& t : *side) t = t.index_select(0, cache_rows);
}

}  // namespace fewstep::decoding
