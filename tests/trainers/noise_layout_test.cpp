// Noise layouts of next-clean-token training on a small random transformer in float64: who influences whom, when it is the plain
// loss, what is drawn, gradients.
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <memory>

#include "src/decoding/session.h"
#include "src/models/llama.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"
#include "trainers/noise_layout.h"

namespace fewstep {
namespace {

using models::EmbeddingNoise;
using models::EmbeddingNoiseConfig;
using models::LlamaForCausalLM;
using models::TimestepTokens;

constexpr int64_t P = 3, N = 13, n = N - 1, B = 3, V = 41, kFirstImage = 9;
constexpr NoiseLayout kLayouts[] = {NoiseLayout::segments, NoiseLayout::window, NoiseLayout::two_stream};
constexpr TimestepTokens kTokens[] = {TimestepTokens::none, TimestepTokens::shared_suffix, TimestepTokens::per_slot};

std::unique_ptr<LlamaForCausalLM> small_model() {
  models::LlamaConfig c;
  c.vocab_size = V, c.hidden_size = 16, c.intermediate_size = 24, c.num_hidden_layers = 2, c.num_attention_heads = 2;
  c.initializer_range = 0.4;
  auto model = std::make_unique<LlamaForCausalLM>(c);
  model->initialise(5);
  model->to(at::kDouble);
  return model;
}

// One batch of the task on that model.
struct Small {
  explicit Small(TimestepTokens tokens) : model(small_model()), noise(config_of(tokens), model->embedding_weight(), kFirstImage) {
    at::set_num_threads(1);  // tiny tensors: on busy cores threads would only wait for each other
    const Tensor u = uniform_by_id(at::arange(B), P + N, 1, Stream::data, 0).to(at::kDouble);
    ids = (u * (V - kFirstImage)).floor().to(at::kLong) + kFirstImage;
    eps = normal_by_id(at::arange(B), {n, 16}, 1, Stream::noise, 0).to(at::kDouble);
  }
  static EmbeddingNoiseConfig config_of(TimestepTokens tokens) {
    EmbeddingNoiseConfig c;
    c.timestep_tokens = tokens;
    return c;
  }
  NoisyInput input(const NoisePlan& plan) const {
    return arrange(plan, noise, model->embed(ids.narrow(1, 0, P)), model->embed(ids.narrow(1, P, n)), eps);
  }
  Tensor outputs(const NoisyInput& x, const Tensor& embeds) const {
    models::ForwardOptions options;
    options.positions = x.positions, options.mask = x.mask;
    return model->hidden(embeds, options);  // [B, L, d]
  }
  Tensor losses(const NoisePlan& plan) const {  // [B, R]
    const NoisyInput x = input(plan);
    return model->token_loss(outputs(x, x.embeds).index_select(1, x.rows), ids.narrow(1, P, N).index_select(1, x.targets));
  }
  Tensor plain_losses() const {  // [B, N]: next-token prediction as the trainer `autoregressive` has it
    return model->token_loss(model->hidden(model->embed(ids.narrow(1, 0, P + n))).narrow(1, P - 1, N), ids.narrow(1, P, N));
  }
  std::unique_ptr<LlamaForCausalLM> model;
  EmbeddingNoise noise;
  Tensor ids, eps;
};

NoiseLayoutConfig layout_of(NoiseLayout layout, int64_t levels = 0) {
  return {.layout = layout, .segments = 4, .window = 5, .levels_count = levels};
}
Tensor no_structure(int64_t length = N) { return at::zeros({length}, at::kBool); }
NoisePlan plan_of(const NoiseLayoutConfig& c, const EmbeddingNoiseConfig& noise = {}, int64_t step = 7) {
  return draw_noise_plan(c, noise, no_structure(), {at::arange(B), 11, step});
}

// What row may see which column, from the rules and not from the mask: bool [L, L] of sample b.
Tensor allowed(const NoisePlan& plan, TimestepTokens tokens, int64_t b) {
  const bool two = plan.layout == NoiseLayout::two_stream;
  const int64_t T = P + n, noisy = two ? T : P, suffix = noisy + n;
  const int64_t shared = plan.time.size(1);
  const int64_t L = suffix + (tokens == TimestepTokens::none ? 0 : tokens == TimestepTokens::per_slot ? n : shared);
  const Tensor out = at::zeros({L, L}, at::kBool);
  auto see = out.accessor<bool, 2>();
  const auto group = plan.group.accessor<int64_t, 2>(), first = plan.first.accessor<int64_t, 2>();
  for (int64_t r = 0; r < L; ++r)
    for (int64_t c = 0; c < L; ++c) {
      const int64_t i = r - noisy, j = c - noisy;  // image tokens of the noisy columns
      const bool is_noisy = i >= 0 && r < suffix, is_timestep = r >= suffix;
      if (is_timestep) see[r][c] = c == r;
      else if (c >= suffix && !is_noisy) see[r][c] = false;
      else if (c >= suffix) see[r][c] = group[b][i] >= 0 && c - suffix == (tokens == TimestepTokens::per_slot ? i : group[b][i]);
      else if (!two || !is_noisy) see[r][c] = c <= r;
      else if (c < noisy) see[r][c] = c < P + first[b][i];
      else see[r][c] = j <= i && j >= first[b][i];
    }
  return out;
}

class Layouts : public testing::TestWithParam<std::tuple<NoiseLayout, TimestepTokens, int64_t>> {};

// Both directions: what must be invisible changes nothing, what is visible changes something.
TEST_P(Layouts, InfluenceIsExactlyWhatTheRulesAllow) {
  const NoGrad no_grad;
  const auto [layout, tokens, levels] = GetParam();
  const Small s(tokens);
  const NoisePlan plan = plan_of(layout_of(layout, levels), s.noise.config());
  ASSERT_TRUE(plan.noised.any().item<bool>());
  const NoisyInput x = s.input(plan);
  const int64_t L = x.embeds.size(1);
  const Tensor base = s.outputs(x, x.embeds);
  std::vector<Tensor> columns;  // [B, L]: how far each row moves with a column
  for (int64_t c = 0; c < L; ++c) {
    const Tensor moved = x.embeds.clone();
    moved.select(1, c).add_(at::linspace(-1, 1, 16, at::kDouble));
    columns.push_back((s.outputs(x, moved) - base).abs().amax(-1));
  }
  const Tensor influence = at::stack(columns, -1);  // [B, row, column]
  for (int64_t b = 0; b < B; ++b) {
    // Two layers: what it sees, and what that saw.
    const Tensor direct = allowed(plan, tokens, b).to(at::kDouble), reach = at::mm(direct, direct).gt(0);
    EXPECT_EQ(influence[b].masked_select(reach.logical_not()).max().item<double>(), 0.0) << "sample " << b;
    EXPECT_GT(influence[b].masked_select(reach).min().item<double>(), 1e-9) << "sample " << b;
  }
  if (tokens == TimestepTokens::none) return;
  const int64_t clean = layout == NoiseLayout::two_stream ? P + n : P, suffix = clean + n;
  EXPECT_EQ(influence.narrow(1, 0, clean).narrow(2, suffix, L - suffix).max().item<double>(), 0.0) << "clean rows see no timestep";
  EXPECT_GT(influence.narrow(1, clean, n).narrow(2, suffix, L - suffix).max().item<double>(), 1e-6);
}

TEST_P(Layouts, WithoutNoiseItIsThePlainLoss) {
  const NoGrad no_grad;
  const auto [layout, tokens, levels] = GetParam();
  const Small s(tokens);
  NoisePlan plan = plan_of(layout_of(layout, levels), s.noise.config());
  const Tensor noisy = s.losses(plan);
  plan.time.zero_(), plan.noised.zero_();  // the layout as drawn, every level at t = 0
  const Tensor clean = s.losses(plan), plain = s.plain_losses();
  EXPECT_LT((clean.narrow(1, 0, N) - plain).abs().max().item<double>(), 1e-12);
  if (layout == NoiseLayout::two_stream) {
    EXPECT_LT((clean.narrow(1, N, n) - plain.narrow(1, 1, n)).abs().max().item<double>(), 1e-12);
    EXPECT_LT((noisy.narrow(1, 0, N) - plain).abs().max().item<double>(), 1e-12) << "noise does not reach the clean stream";
  }
  EXPECT_GT((noisy - clean).abs().max().item<double>(), 1e-3) << "and noise is seen";
}

TEST_P(Layouts, CleanRowsAreThoseOfThePlainLoss) {
  const NoGrad no_grad;
  const auto [layout, tokens, levels] = GetParam();
  const Small s(tokens);
  const NoisePlan plan = plan_of(layout_of(layout, levels), s.noise.config());
  const Tensor loss = s.losses(plan).narrow(1, 0, N), difference = (loss - s.plain_losses()).abs();
  const Tensor h = plan.row_height.narrow(1, 0, N);
  EXPECT_LT(difference.masked_select(h.eq(-1)).max().item<double>(), 1e-12);
  if (layout == NoiseLayout::two_stream) return;
  EXPECT_GT(difference.masked_select(h.gt(0.5)).min().item<double>(), 1e-9);
}

INSTANTIATE_TEST_SUITE_P(All, Layouts,
                         testing::Combine(testing::ValuesIn(kLayouts), testing::ValuesIn(kTokens), testing::Values(0, 3)));

TEST(NoiseLayout, PositionsAreThoseOfTheCleanTokensAndZeroForSharedTimesteps) {
  const NoGrad no_grad;
  for (const NoiseLayout layout : kLayouts)
    for (const TimestepTokens tokens : kTokens) {
      const NoisePlan plan = plan_of(layout_of(layout));
      Tensor expected = at::arange(P + n);
      const Tensor slots = at::arange(P, P + n);
      if (layout == NoiseLayout::two_stream) expected = at::cat({expected, slots});
      if (tokens == TimestepTokens::per_slot) expected = at::cat({expected, slots});
      if (tokens == TimestepTokens::shared_suffix) expected = at::cat({expected, at::zeros({plan.time.size(1)}, at::kLong)});
      const NoisyInput x = Small(tokens).input(plan);
      EXPECT_TRUE(x.positions.equal(expected));
      // An output row predicts the token behind its own position.
      EXPECT_TRUE(x.positions.index_select(0, x.rows).add(1 - P).equal(x.targets));
    }
}

TEST(NoiseLayout, DrawsDependOnTheSampleNotOnItsBatch) {
  for (const NoiseLayout layout : kLayouts) {
    const auto draw = [&](const Tensor& ids, int64_t step) {
      return draw_noise_plan(layout_of(layout), {}, no_structure(), {ids, 11, step});
    };
    const NoisePlan all = draw(at::arange(16), 3), part = draw(at::arange(5, 9), 3), other = draw(at::arange(16), 4);
    for (const auto& field : {&NoisePlan::group, &NoisePlan::time, &NoisePlan::first, &NoisePlan::noised, &NoisePlan::row_height,
                              &NoisePlan::row_weight})
      EXPECT_TRUE((all.*field).narrow(0, 5, 4).equal(part.*field));
    EXPECT_FALSE(all.group.equal(other.group)) << "another step, another draw";
  }
}

// Levels never fall along a part, segment or window.
TEST(NoiseLayout, TimesRise) {
  for (const NoiseLayout layout : kLayouts)
    for (const int64_t levels : {0, 6}) {
      const NoisePlan plan = draw_noise_plan(layout_of(layout, levels), {}, no_structure(64), {at::arange(200), 1, 0});
      EXPECT_TRUE(plan.time.diff().ge(0).all().item<bool>());
      EXPECT_TRUE((plan.time.gt(0) & plan.time.le(1)).all().item<bool>());
      const Tensor group = plan.group, same = plan.first.diff().eq(0), step = group.diff();
      const Tensor inside = layout == NoiseLayout::window ? group.narrow(1, 1, 62).ge(0) : same;
      EXPECT_TRUE((step.ge(0) | inside.logical_not()).all().item<bool>());
      EXPECT_EQ(group.max().item<int64_t>(), plan.time.size(1) - 1) << "every level occurs";
      if (levels == 0) continue;
      // Exactly the decoder's levels.
      const auto known = models::level_times({}, levels);
      for (const Tensor& row : plan.time.unbind(0))
        for (int64_t g = 0; g < row.numel(); ++g)
          EXPECT_NE(std::find(known.begin(), known.end(), row[g].item<double>()), known.end());
    }
}

TEST(NoiseLayout, SegmentsHaveTheExpectedStatistics) {
  constexpr int64_t kSamples = 6000, kLength = 200, S = 5;
  const NoiseLayoutConfig c{.layout = NoiseLayout::segments, .segments = S};
  const NoisePlan plan = draw_noise_plan(c, {}, no_structure(kLength), {at::arange(kSamples), 1, 0});
  // M ~ U{2 ... S} parts; the clean one is the least of M - 1 uniform cuts: its mean is 1 / M of the image.
  double expected = 0;
  for (int64_t M = 2; M <= S; ++M) expected += 1.0 / static_cast<double>(M * (S - 1));
  const double clean = plan.group.eq(-1).to(at::kDouble).mean().item<double>();
  EXPECT_NEAR(clean, expected, 0.01);
  const Tensor parts = plan.group.amax(1) + 2;
  for (int64_t M = 2; M <= S; ++M) EXPECT_NEAR(parts.eq(M).to(at::kDouble).mean().item<double>(), 0.25, 0.03) << M << " parts";
  // Parts are alike in length whatever their height, which is uniform.
  EXPECT_NEAR(plan.row_height.masked_select(plan.row_height.ge(0)).mean().item<double>(), 0.5, 0.02);
  EXPECT_EQ(loss_rows(c, kLength), kLength);
}

TEST(NoiseLayout, WindowsHaveTheRampOfTheDecoder) {
  constexpr int64_t W = 12, K = 4, kLength = 100;
  for (const NoiseLayout layout : {NoiseLayout::window, NoiseLayout::two_stream}) {
    const NoiseLayoutConfig c{.layout = layout, .window = W, .levels_count = K, .clean_weight = 0.5};
    const NoisePlan plan = draw_noise_plan(c, {}, no_structure(kLength), {at::arange(4000), 1, 0});
    const Tensor noisy = plan.group.ge(0).sum(1).to(at::kDouble);
    if (layout == NoiseLayout::window) {
      EXPECT_EQ(noisy.max().item<double>(), W);
      EXPECT_EQ(noisy.min().item<double>(), 1) << "cut off at the end of the image";
    } else {
      EXPECT_EQ(noisy.min().item<double>(), kLength - 1);
    }
    // In windows that are whole and far from the start, the last slot is at level K and the first one near the lowest.
    auto group = plan.group.accessor<int64_t, 2>(), start = plan.first.accessor<int64_t, 2>();
    std::array<double, W> level{};
    double windows = 0;
    for (int64_t b = 0; b < 4000; ++b)
      for (int64_t i = 3 * W; i + W < kLength - 1; ++i) {
        if (group[b][i] < 0 || start[b][i] != i || (layout == NoiseLayout::window && group[b][i + W - 1] < 0)) continue;
        for (int64_t j = 0; j < W; ++j) level[static_cast<size_t>(j)] += static_cast<double>(group[b][i + j] + 1);
        windows += 1;
      }
    ASSERT_GT(windows, 500);
    EXPECT_EQ(level[W - 1] / windows, K);
    EXPECT_LT(level[0] / windows, 1.6);
    EXPECT_NEAR(level[W / 2] / windows, 2.5, 0.5);
    // The first window of an image starts out as noise, and loses a level for every pass, that is for a token or more.
    std::array<int64_t, K> lowest{K, K, K, K};
    for (int64_t b = 0; b < 4000; ++b)
      for (int64_t s = 0; s < K; ++s)
        if (int64_t& low = lowest[static_cast<size_t>(s)]; group[b][s] >= 0 && start[b][s] == s) low = std::min(low, group[b][s] + 1);
    EXPECT_EQ(lowest, (std::array<int64_t, K>{4, 3, 2, 1}));
    EXPECT_NEAR(plan.row_weight.sum(1).mean().item<double>(), loss_rows(c, kLength), 0.5);
  }
}

// Training and decoding are two programs for one function: a window in the middle of a sequence, once in a batch with
// everything else, once behind a cache of committed tokens.
TEST(NoiseLayout, TheDecoderSeesWhatWasTrained) {
  const NoGrad no_grad;
  constexpr int64_t K = 3, W = 5;
  const models::SequenceLayout sequence{.text_vocab = 8, .pad_id = 0, .codebook = V - kFirstImage, .caption_length = P - 1,
                                        .grid_height = 1, .grid_width = N};
  for (const TimestepTokens tokens : kTokens) {
    const Small s(tokens);
    const NoisePlan plan = draw_noise_plan(layout_of(NoiseLayout::window, K), s.noise.config(), no_structure(),
                                           {at::tensor({3, 5, 8}, at::kLong), 11, 7});
    const NoisyInput x = s.input(plan);
    const Tensor hidden = s.outputs(x, x.embeds).index_select(1, x.rows);                         // [B, N, d]
    const Tensor trained = s.model->logits(hidden, kFirstImage, sequence.codebook);               // [B, N, codes]
    const decoding::LlamaImageModel model(*s.model, sequence);
    decoding::DecodingSession session(model, s.ids.narrow(1, 0, P), {.window = W, .most_pending = N, .noise = &s.noise,
                                                                     .times = models::level_times(s.noise.config(), K)});
    session.pass(x.embeds.narrow(1, 0, 0), {});  // the prompt
    const Tensor begin = plan.group.lt(0).cumprod(1).sum(1);  // [B]: clean tokens in front of the window
    ASSERT_GT(begin.min().item<int64_t>(), 0);
    session.commit(s.ids.narrow(1, P, N) - kFirstImage, begin, at::zeros_like(begin));
    const Tensor slots = begin.unsqueeze(1) + at::arange(W), inside = slots.lt(n);
    const Tensor at = slots.clamp_max(n - 1), levels = (plan.group.gather(1, at) + 1);
    const Tensor inputs = x.embeds.narrow(1, P, n).gather(1, at.unsqueeze(2).expand({B, W, 16}));
    const Tensor decoded = session.pass(inputs, levels).narrow(1, 1, W);  // of the slots behind each noisy one
    const Tensor expected = trained.gather(1, (at + 1).unsqueeze(2).expand({B, W, sequence.codebook}));
    const Tensor difference = (decoded - expected).abs().amax(2);
    EXPECT_LT(difference.masked_select(inside).max().item<double>(), 1e-9);
    EXPECT_GT(inside.sum().item<int64_t>(), 2 * W);
    // The control: other levels are another function, unless nothing tells the network of them.
    const Tensor other = session.pass(inputs, K + 1 - levels).narrow(1, 1, W);
    EXPECT_EQ((other - decoded).abs().max().item<double>() > 1e-6, tokens != TimestepTokens::none);
  }
}

TEST(NoiseLayout, StructuralTokensStayClean) {
  const NoGrad no_grad;
  const Small s(TimestepTokens::shared_suffix);
  const Tensor structural = at::arange(N).remainder(4).eq(3);
  for (const NoiseLayout layout : kLayouts) {
    const NoisePlan plan = draw_noise_plan(layout_of(layout), s.noise.config(), structural, {at::arange(B), 11, 7});
    const NoisyInput x = s.input(plan);
    const int64_t noisy = layout == NoiseLayout::two_stream ? P + n : P;
    const Tensor same = (x.embeds.narrow(1, noisy, n) - s.model->embed(s.ids.narrow(1, P, n))).abs().amax(-1).eq(0);  // [B, n]
    EXPECT_TRUE(same.equal(plan.noised.logical_not()));
    EXPECT_FALSE((plan.noised & structural.narrow(0, 0, n)).any().item<bool>());
    EXPECT_TRUE(plan.noised.any().item<bool>());
  }
}

TEST(NoiseLayout, LossesFallIntoTheirLevels) {
  NoisePlan plan;
  plan.row_height = at::tensor({-1.0, 0.0, 0.2, 0.25, 0.6, 1.0, -2.0}, at::kDouble).unsqueeze(0);
  const LossByLevel levels = by_level(plan, at::tensor({1, 2, 4, 8, 16, 32, 64}, at::kFloat).unsqueeze(0));
  EXPECT_EQ(levels.counts, (std::array<double, 5>{1, 2, 1, 1, 1}));
  EXPECT_TRUE(levels.sums.equal(at::tensor({1.0, 6.0, 8.0, 16.0, 32.0}, at::kDouble)));
}

TEST(NoiseLayout, GradientsAreThoseOfFiniteDifferences) {
  for (const NoiseLayout layout : kLayouts) {
    const Small s(TimestepTokens::shared_suffix);
    s.model->requires_grad(true);
    const NoisePlan plan = plan_of(layout_of(layout), s.noise.config());
    const auto loss = [&] { return (s.losses(plan) * plan.row_weight).sum(); };
    loss().backward();
    for (const char* name : {"model.embed_tokens.weight", "model.layers.0.self_attn.v_proj.weight", "lm_head.weight"})
      for (NamedTensor& p : s.model->parameters()) {
        if (p.name != name) continue;
        const NoGrad no_grad;
        const Tensor flat = p.tensor.view(-1), grad = p.tensor.grad().reshape(-1);
        const int64_t i = grad.abs().argmax().item<int64_t>();
        const double at_i = flat[i].item<double>(), h = 1e-5;
        flat[i].fill_(at_i + h);
        const double up = loss().item<double>();
        flat[i].fill_(at_i - h);
        const double down = loss().item<double>();
        flat[i].fill_(at_i);
        const double expected = (up - down) / (2 * h), found = grad[i].item<double>();
        EXPECT_NEAR(found, expected, 1e-6 * std::abs(expected)) << name;
        EXPECT_GT(std::abs(found), 1e-3) << name;
      }
  }
}

}  // namespace
}  // namespace fewstep
