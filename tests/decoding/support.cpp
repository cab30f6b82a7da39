#include "tests/decoding/support.h"

#include <fmt/format.h>

#include <cmath>

#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep::testing {
namespace {

models::SequenceLayout layout_of(const TinySetup& s) {
  models::SequenceLayout l;
  l.text_vocab = 5, l.pad_id = 0, l.codebook = s.codebook, l.caption_length = 2;
  l.grid_height = s.grid_height, l.grid_width = s.grid_width, l.row_end = s.row_end;
  return l;
}

models::LlamaConfig config_of(const models::SequenceLayout& layout) {
  models::LlamaConfig c;
  c.vocab_size = layout.vocab_size(), c.hidden_size = 16, c.intermediate_size = 24, c.num_hidden_layers = 2;
  c.num_attention_heads = 2, c.num_key_value_heads = 1, c.initializer_range = 0.5;
  c.max_position_embeddings = layout.sequence_length();
  return c;
}

}  // namespace

TinyModel::TinyModel(const TinySetup& s) : layout(layout_of(s)), network(config_of(layout)) {
  network.initialise(1);
  network.requires_grad(false);
  network.to(s.dtype);
  image_model_ = std::make_unique<decoding::LlamaImageModel>(network, layout);
  noise_ = std::make_unique<models::EmbeddingNoise>(s.noise, network.embedding_weight(), layout.image_id(0));
}

Tensor TinyModel::prompts(int64_t rows) const {
  return layout.prompts({{1, 2}, {3}}).index_select(0, at::arange(rows, at::kLong) % kPrompts);
}

Tensor plain_logits(const TinyModel& tiny, const Tensor& prompts, const Tensor& codes, double guidance) {
  const NoGrad no_grad;
  const int64_t P = prompts.size(1), N = codes.size(1);
  const Tensor unconditional = at::tensor(tiny.layout.unconditional_prompt(), at::kLong).expand_as(prompts);
  const auto branch = [&](const Tensor& context) {
    const Tensor ids = at::cat({context, codes.narrow(1, 0, N - 1) + tiny.layout.image_id(0)}, 1);
    return tiny.network(ids).narrow(1, P - 1, N).narrow(2, tiny.layout.image_id(0), tiny.layout.image_vocab());
  };
  const Tensor u = branch(unconditional);
  return u + guidance * (branch(prompts) - u);
}

Tensor plain_logits(const TinyModel& tiny, const Tensor& prompt, const Seen& seen, const std::vector<double>& times, int64_t first,
                    int64_t count, double guidance) {
  const NoGrad no_grad;
  const auto kind = tiny.noise().config().timestep_tokens;
  const auto n = static_cast<int64_t>(seen.embeds.size()), P = prompt.size(0), L = P + n;
  std::vector<int64_t> token_level, token_position, token_of(static_cast<size_t>(n), -1);
  if (kind == models::TimestepTokens::shared_suffix)
    for (int64_t k = 1; k < static_cast<int64_t>(times.size()); ++k) token_level.push_back(k), token_position.push_back(0);
  for (size_t i = 0; i < seen.levels.size(); ++i) {
    if (seen.levels[i] == 0) continue;
    if (kind == models::TimestepTokens::shared_suffix) token_of[i] = seen.levels[i] - 1;
    if (kind != models::TimestepTokens::per_slot) continue;
    token_of[i] = static_cast<int64_t>(token_level.size());
    token_level.push_back(seen.levels[i]), token_position.push_back(P + static_cast<int64_t>(i));
  }
  const auto T = static_cast<int64_t>(token_level.size());
  Tensor mask = at::zeros({L + T, L + T}, at::kBool);
  mask.narrow(0, 0, L).narrow(1, 0, L).copy_(at::ones({L, L}, at::kBool).tril());
  mask.narrow(0, L, T).narrow(1, L, T).copy_(at::eye(T, at::kBool));
  for (int64_t i = 0; i < n; ++i)
    if (token_of[static_cast<size_t>(i)] >= 0) mask[P + i][L + token_of[static_cast<size_t>(i)]].fill_(true);
  std::vector<Tensor> image = seen.embeds;
  for (const int64_t k : token_level)
    image.push_back(tiny.noise().timestep_embedding(at::scalar_tensor(times[static_cast<size_t>(k)], at::kDouble)));
  const Tensor positions = at::cat({at::arange(L, at::kLong), at::tensor(token_position, at::kLong)});
  const auto branch = [&](const Tensor& ids) {
    Tensor x = tiny.network.embed(ids.unsqueeze(0));
    if (!image.empty()) x = at::cat({x, at::stack(image).unsqueeze(0)}, 1);
    const Tensor hidden = tiny.network.hidden(x, {.positions = positions, .mask = mask.view({1, 1, L + T, L + T})});
    return tiny.network.logits(hidden).narrow(1, P - 1 + first, count).narrow(2, tiny.layout.image_id(0), tiny.layout.image_vocab())[0];
  };
  const Tensor c = branch(prompt);
  if (guidance == 1) return c;
  const Tensor u = branch(at::tensor(tiny.layout.unconditional_prompt(), at::kLong));
  return u + guidance * (c - u);
}

Tensor all_images(const models::SequenceLayout& layout) {
  const int64_t free = layout.grid_height * layout.grid_width;
  const auto cells = static_cast<int64_t>(std::llround(std::pow(layout.codebook, free)));
  std::vector<Tensor> digits;
  Tensor rest = at::arange(cells, at::kLong);
  for (int64_t i = 0; i < free; ++i, rest = rest.floor_divide(layout.codebook)) digits.push_back(rest % layout.codebook);
  return layout.tokens(at::stack(digits, 1));
}

Tensor cell_of(const models::SequenceLayout& layout, const Tensor& codes) {
  const Tensor digits = layout.indices(codes).flatten(1);
  return (digits * at::pow(layout.codebook, at::arange(digits.size(1), at::kLong))).sum(1);
}

const Tensor& TinyModel::joint_law(const decoding::SamplingOptions& sampling) const {
  Tensor& law = laws_[{sampling.guidance, sampling.temperature, sampling.top_k, sampling.top_p}];
  if (law.defined()) return law;
  const Tensor images = all_images(layout), forced = layout.forced_codes().ge(0);
  const Tensor code = images.clamp_max(layout.codebook - 1).unsqueeze(2);
  std::vector<Tensor> rows;
  for (int64_t i = 0; i < kPrompts; ++i) {
    const Tensor prompt = prompts(kPrompts).narrow(0, i, 1).expand({images.size(0), -1});
    const Tensor logits = plain_logits(*this, prompt, images, sampling.guidance).narrow(2, 0, layout.codebook);
    const Tensor p = decoding::code_law(logits.to(at::kDouble), sampling).gather(2, code).squeeze(2);  // [cells, N]
    rows.push_back(p.masked_fill(forced, 1).prod(1));
  }
  return law = at::stack(rows);
}

Fit fit(const Tensor& counts, const Tensor& laws) {
  Fit out;
  for (int64_t r = 0; r < laws.size(0); ++r) {
    const Tensor seen = counts.select(0, r).to(at::kDouble), expected = laws.select(0, r) * seen.sum();
    const Tensor common = expected.ge(5);
    const Tensor o = at::cat({seen.masked_select(common), seen.masked_fill(common, 0).sum().view(1)});
    const Tensor e = at::cat({expected.masked_select(common), expected.masked_fill(common, 0).sum().view(1)});
    const Tensor terms = ((o - e).square() / e).masked_fill(e.eq(0).logical_and(o.eq(0)), 0);
    out.chi2 += terms.sum().item<double>();
    out.df += e.gt(0).sum().item<int64_t>() - 1;
    out.impossible += counts.select(0, r).masked_fill(laws.select(0, r).gt(0), 0).sum().item<int64_t>();
    out.tv += 0.5 * (seen / seen.sum() - laws.select(0, r)).abs().sum().item<double>() / static_cast<double>(laws.size(0));
  }
  const auto half = [](double v) { return at::scalar_tensor(v / 2, at::kDouble); };
  out.p = at::special_gammaincc(half(static_cast<double>(out.df)), half(out.chi2)).item<double>();
  return out;
}

double max_difference(const Tensor& a, const Tensor& b) { return (a - b).abs().max().item<double>(); }
double rms(const Tensor& t) { return t.square().mean().sqrt().item<double>(); }
Tensor some_ids(int64_t rows, int64_t first) { return at::arange(first, first + rows, at::kLong); }

std::string label(const decoding::DecoderOptions& o) {
  using namespace decoding;
  std::string s(name_of(o.kind));
  if (o.kind == DecoderKind::sjd2) s += fmt::format(" {} K={}", o.mode == Sjd2Mode::gated ? "gated" : "published", o.steps);
  if (o.kind != DecoderKind::ar) s += fmt::format(" W={}", o.window);
  if (o.kind == DecoderKind::sjd) s += o.refill == Refill::one_hot ? " one_hot" : o.refill == Refill::left ? " left" : " uniform";
  if (o.coupling != Coupling::none) s += o.coupling == Coupling::maximal ? " maximal" : " gumbel";
  if (!o.refine) s += " no refining";
  if (o.denoise_with == DenoiseWith::expected) s += " expected";
  if (o.mode == Sjd2Mode::published && o.noisy_kv == NoisyKv::keep) s += " keep";
  if (o.relaxed_neighbours > 0) s += fmt::format(" relaxed {}", o.relaxed_neighbours);
  return s;
}

}  // namespace fewstep::testing
