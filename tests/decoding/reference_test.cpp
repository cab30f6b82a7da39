// The decoders against plain ones: one image, scalars, every pass made from nothing over all tokens. They prove what no
// chi-square can, the rules that do not give the model's own law.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "src/decoding/rules.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "tests/decoding/support.h"

namespace fewstep::decoding {
namespace {

using namespace fewstep::testing;
using Law = std::vector<double>;

constexpr SamplingOptions kSampling{.guidance = 2.0, .temperature = 1.5, .top_k = 3, .top_p = 1.0};
constexpr uint64_t kSeed = 9;

int64_t pick(const Law& weights, double u) {
  double total = 0, sum = 0;
  for (const double w : weights) total += w;
  for (size_t v = 0; v < weights.size(); ++v)
    if ((sum += weights[v]) > u * total) return static_cast<int64_t>(v);
  return -1;
}

Law law_of_known(const TinyModel& tiny, int64_t code) {
  Law p(static_cast<size_t>(tiny.layout.image_vocab()), 0.0);
  p[static_cast<size_t>(code)] = 1;
  return p;
}

// Law of slot i for guided logits [K].
Law law_of(const TinyModel& tiny, const Tensor& logits, int64_t i, const SamplingOptions& sampling) {
  const int64_t known = tiny.layout.forced_codes()[i].item<int64_t>();
  if (known >= 0) return law_of_known(tiny, known);
  const Tensor p = code_law(logits.narrow(0, 0, tiny.layout.codebook), sampling).contiguous();
  Law law(p.const_data_ptr<double>(), p.const_data_ptr<double>() + p.numel());
  law.resize(static_cast<size_t>(tiny.layout.image_vocab()), 0.0);
  return law;
}

struct Slot {
  int64_t x;  // draft ~ q
  Law q;
  int64_t k;  // noise level
  Tensor z;   // [d]
};

class PlainDecoder {
 public:
  PlainDecoder(const TinyModel& tiny, const Tensor& prompt, int64_t id, const DecoderOptions& o)
      : tiny_(tiny), o_(o), prompt_(prompt), randomness_(some_ids(1, id), kSeed, tiny.length(), at::TensorOptions()),
        N_(tiny.length()), table_(tiny.model().table()), forced_(tiny.layout.forced_codes()) {
    if (o.kind == DecoderKind::sjd2) times_ = models::level_times(tiny.noise().config(), o.steps);
  }

  std::vector<int64_t> run() {
    while (static_cast<int64_t>(codes_.size()) < N_) step();
    return codes_;
  }
  int64_t passes() const { return pass_; }

 private:
  int64_t known(int64_t i) const { return forced_[i].item<int64_t>(); }
  double uniform(int64_t column) const { return randomness_.of_pass(pass_)[0][column].item<double>(); }
  Law one_hot(int64_t code) const { return law_of_known(tiny_, code); }

  Slot fresh(int64_t i, int64_t neighbour) const {
    const int64_t free = tiny_.layout.codebook;
    if (known(i) >= 0) return {known(i), one_hot(known(i)), 0, {}};
    const auto x = static_cast<int64_t>(randomness_.first_draft()[0][i].item<double>() * static_cast<double>(free));
    if (o_.kind != DecoderKind::sjd2 && o_.refill != Refill::uniform) {
      const int64_t draft = o_.refill == Refill::left && neighbour >= 0 ? neighbour : x;
      return {draft, one_hot(draft), 0, {}};
    }
    Law even(static_cast<size_t>(tiny_.layout.image_vocab()), 0.0);
    std::fill(even.begin(), even.begin() + free, 1.0 / static_cast<double>(free));
    if (o_.kind != DecoderKind::sjd2) return {x, even, 0, {}};
    return {x, even, o_.steps, randomness_.normal(table_.size(1))[0][i].to(at::kDouble)};
  }

  std::vector<Law> laws(const Seen& seen, int64_t first, int64_t count) const {
    const Tensor l = plain_logits(tiny_, prompt_, seen, times_, first, count, o_.sampling.guidance);
    std::vector<Law> all;
    for (int64_t j = 0; j < count; ++j) all.push_back(law_of(tiny_, l[j], first + j, o_.sampling));
    return all;
  }

  // The token of slot i: its draft, if there is one and it stands, or a new one. `coupled`: the draft has a say.
  std::pair<int64_t, bool> judge(const Slot* slot, const Law& p, int64_t i, bool coupled) const {
    if (o_.coupling == Coupling::gumbel) {
      const Tensor g = randomness_.gumbel({i}, 1, static_cast<int64_t>(p.size()))[0][0];
      int64_t best = 0;
      const auto score = [&](int64_t v) { return std::log(p[static_cast<size_t>(v)]) + std::log(g[v].item<double>()); };
      for (int64_t v = 1; v < g.numel(); ++v)
        if (score(v) > score(best)) best = v;
      return {best, slot && slot->x == best};
    }
    const double again = uniform(N_ + 1 + i);
    if (o_.kind == DecoderKind::jacobi) return {pick(p, again), slot && slot->x == pick(p, again)};
    if (!slot || !coupled) return {pick(p, again), false};
    const auto x = static_cast<size_t>(slot->x);
    if (uniform(i) < std::min(1.0, p[x] / slot->q[x])) return {slot->x, true};
    Law rest(p.size());
    double sum = 0;
    for (size_t v = 0; v < p.size(); ++v) sum += rest[v] = std::max(p[v] - slot->q[v], 0.0);
    return {pick(sum > 0 ? rest : p, again), false};
  }

  void advance(Slot& slot, int64_t y, const Law& p) const {
    if (slot.k == 0 && !o_.refine) return;
    if (slot.k > 0) {
      Tensor clean = table_[y];
      if (o_.denoise_with == DenoiseWith::expected && slot.k > 1) clean = at::matmul(at::tensor(p, at::kDouble), table_);
      const auto t = [&](int64_t k) { return at::scalar_tensor(times_[static_cast<size_t>(k)], at::kDouble); };
      slot.z = tiny_.noise().denoise(slot.z, tiny_.noise().normalise(clean), t(slot.k), t(slot.k - 1));
      --slot.k;
    }
    slot.x = y, slot.q = p;
  }

  void step() {
    const auto n = static_cast<int64_t>(codes_.size());
    const int64_t neighbour = window_.empty() ? -1 : window_.back().x;
    while (static_cast<int64_t>(window_.size()) < std::min(o_.window, N_ - n))
      window_.push_back(fresh(n + static_cast<int64_t>(window_.size()), neighbour));
    const auto W = static_cast<int64_t>(window_.size());
    Seen all = seen_;
    for (const Slot& s : window_) {
      all.embeds.push_back(s.k > 0 ? tiny_.noise().denormalise(s.z) : table_[s.x]);
      all.levels.push_back(s.k);
    }
    const std::vector<Law> p = laws(all, n, std::min(W + 1, N_ - n));
    std::vector<int64_t> y;
    int64_t count = 0, valid = 0;
    bool open = true, all_valid = true;
    for (int64_t j = 0; j < static_cast<int64_t>(p.size()); ++j) {
      const Slot* slot = j < W ? &window_[static_cast<size_t>(j)] : nullptr;
      const auto [code, stands] = judge(slot, p[static_cast<size_t>(j)], n + j, open || o_.coupling == Coupling::maximal);
      y.push_back(code);
      if (open) count = j + 1;
      else if (count == j && known(n + j) >= 0) count = j + 1;  // nothing to decide
      const bool clean = slot && slot->k == 0, keep_noisy = o_.mode == Sjd2Mode::published && o_.noisy_kv == NoisyKv::keep;
      all_valid = all_valid && stands && (clean || keep_noisy);
      valid += all_valid;
      open = open && stands && (o_.mode == Sjd2Mode::published || clean);
    }
    for (int64_t j = 0; j < count; ++j) {
      const auto i = static_cast<size_t>(j);
      const bool as_fed = j < std::min(valid, count - 1);
      seen_.embeds.push_back(as_fed ? all.embeds[static_cast<size_t>(n) + i] : table_[y[i]]);
      seen_.levels.push_back(as_fed ? window_[i].k : 0);
      codes_.push_back(y[i]);
    }
    for (size_t j = static_cast<size_t>(count); j < window_.size(); ++j) advance(window_[j], y[j], p[j]);
    window_.erase(window_.begin(), window_.begin() + std::min(count, W));
    ++pass_;
  }

  const TinyModel& tiny_;
  const DecoderOptions o_;
  const Tensor prompt_;
  const DecoderRandomness randomness_;
  const int64_t N_;
  const Tensor table_, forced_;
  std::vector<double> times_ = {0.0};
  std::vector<int64_t> codes_;
  std::vector<Slot> window_;
  Seen seen_;
  int64_t pass_ = 0;
};

std::vector<DecoderOptions> decoders() {
  std::vector<DecoderOptions> all;
  using enum DecoderKind;
  constexpr Coupling couplings[] = {Coupling::none, Coupling::maximal, Coupling::gumbel};
  all.push_back({.kind = jacobi, .window = 3});
  for (const Refill refill : {Refill::one_hot, Refill::uniform, Refill::left})
    for (const Coupling c : couplings) all.push_back({.kind = sjd, .window = 3, .coupling = c, .refill = refill});
  for (const Coupling c : couplings) {
    for (const auto& [W, K] : {std::pair{4, 2}, {3, 3}, {8, 2}})
      for (const Sjd2Mode mode : {Sjd2Mode::gated, Sjd2Mode::published})
        all.push_back({.kind = sjd2, .window = W, .steps = K, .mode = mode, .coupling = c});
    all.push_back({.kind = sjd2, .window = 4, .steps = 2, .mode = Sjd2Mode::published, .coupling = c, .noisy_kv = NoisyKv::keep});
    all.push_back({.kind = sjd2, .window = 4, .steps = 3, .mode = Sjd2Mode::published, .coupling = c,
                   .denoise_with = DenoiseWith::expected});
    all.push_back({.kind = sjd2, .window = 4, .steps = 2, .mode = Sjd2Mode::published, .coupling = c, .refine = false});
  }
  return all;
}

TEST(PlainDecoder, DrawsTheSameImagesInTheSamePasses) {
  const NoGrad no_grad;
  for (const auto tokens : {models::TimestepTokens::shared_suffix, models::TimestepTokens::per_slot}) {
    TinySetup setup{.dtype = at::kDouble, .grid_height = 2, .grid_width = 4, .row_end = tokens == models::TimestepTokens::per_slot};
    setup.noise.timestep_tokens = tokens;
    const TinyModel tiny(setup);
    const Tensor prompts = tiny.prompts(6), ids = some_ids(6);
    for (DecoderOptions o : decoders()) {
      o.sampling = kSampling;
      const Decoded d = decode(tiny.model(), prompts, ids, kSeed, o, &tiny.noise());
      for (int64_t b = 0; b < 6; ++b) {
        PlainDecoder plain(tiny, prompts[b], b, o);
        EXPECT_TRUE(at::tensor(plain.run(), at::kLong).equal(d.codes[b])) << label(o) << ", image " << b;
        EXPECT_EQ(plain.passes(), d.passes[b].item<int64_t>()) << label(o) << ", image " << b;
      }
    }
  }
}

// --- rows in parallel

// A token that entered the cache: at its place, in a pass. A place may be filled twice, by a stand-in and by its own token.
struct Fed {
  int64_t place, code, pass;
};

// Guided logits of what follows the prompt, then every token fed so far: [1 + fed, K]. A token sees what was there in its pass.
Tensor logits_after(const TinyModel& tiny, const Tensor& prompt, const std::vector<Fed>& fed, double guidance) {
  const auto P = prompt.size(0), n = static_cast<int64_t>(fed.size()), L = P + n;
  Tensor mask = at::ones({L, L}, at::kBool).tril();
  std::vector<int64_t> codes, positions;
  for (int64_t e = 0; e < n; ++e) {
    const Fed& own = fed[static_cast<size_t>(e)];
    codes.push_back(own.code + tiny.layout.image_id(0)), positions.push_back(P + own.place);
    for (int64_t f = 0; f < n; ++f) {
      const Fed& other = fed[static_cast<size_t>(f)];
      const auto replaces = [&](const Fed& g) { return g.place == other.place && g.pass > other.pass && g.pass <= own.pass; };
      mask[P + e][P + f].fill_(other.place <= own.place && other.pass <= own.pass && std::none_of(fed.begin(), fed.end(), replaces));
    }
  }
  const Tensor position = at::cat({at::arange(P, at::kLong), at::tensor(positions, at::kLong)});
  const auto branch = [&](const Tensor& context) {
    const Tensor ids = at::cat({context, at::tensor(codes, at::kLong)}).unsqueeze(0);
    const Tensor hidden = tiny.network.hidden(tiny.network.embed(ids), {.positions = position, .mask = mask.view({1, 1, L, L})});
    return tiny.network.logits(hidden)[0].narrow(0, P - 1, n + 1).narrow(1, tiny.layout.image_id(0), tiny.layout.image_vocab());
  };
  const Tensor u = branch(at::tensor(tiny.layout.unconditional_prompt(), at::kLong));
  return u + guidance * (branch(prompt) - u);
}

std::vector<int64_t> plain_row_parallel(const TinyModel& tiny, const Tensor& prompt, int64_t id, const DecoderOptions& o) {
  const int64_t h = tiny.layout.grid_height, w = tiny.layout.row_length(), lead = std::min(o.window, w);
  const Tensor uniforms = DecoderRandomness(some_ids(1, id), kSeed, tiny.length(), at::TensorOptions()).autoregressive()[0];
  std::vector<int64_t> codes(static_cast<size_t>(tiny.length()), -1);
  const auto code = [&](int64_t place) -> int64_t& { return codes[static_cast<size_t>(place)]; };
  std::vector<Fed> fed;
  for (int64_t pass = 0; pass < (h - 1) * lead + w; ++pass) {
    std::vector<std::pair<int64_t, int64_t>> wanted;  // place, row of the logits
    for (int64_t r = 0; r < h; ++r) {
      const int64_t c = pass - r * lead, place = r * w + c;
      if (c == w && lead < w && r + 1 < h) fed.push_back({place - 1, code(place - 1), pass});  // in place of its stand-in
      if (c < 0 || c >= w) continue;
      if (place > 0) fed.push_back({place - 1, code(c > 0 || lead == w ? place - 1 : (r - 1) * w + lead - 1), pass});
      wanted.emplace_back(place, static_cast<int64_t>(fed.size()));
    }
    const Tensor l = logits_after(tiny, prompt, fed, o.sampling.guidance);
    for (const auto& [place, row] : wanted) code(place) = pick(law_of(tiny, l[row], place, o.sampling), uniforms[place].item<double>());
  }
  return codes;
}

TEST(PlainDecoder, DrawsTheSameImagesWithRowsInParallel) {
  const NoGrad no_grad;
  for (const bool row_end : {false, true}) {
    const TinyModel tiny({.dtype = at::kDouble, .grid_height = 3, .row_end = row_end});
    const Tensor prompts = tiny.prompts(6);
    for (const int64_t lead : {1, 2, 3, 4}) {
      const DecoderOptions o{.kind = DecoderKind::zipar, .sampling = kSampling, .window = lead};
      const Decoded d = decode(tiny.model(), prompts, some_ids(6), kSeed, o);
      for (int64_t b = 0; b < 6; ++b)
        EXPECT_TRUE(at::tensor(plain_row_parallel(tiny, prompts[b], b, o), at::kLong).equal(d.codes[b])) << lead << ", image " << b;
    }
  }
}

}  // namespace
}  // namespace fewstep::decoding
