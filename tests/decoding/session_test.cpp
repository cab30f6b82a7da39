// A session's logits against one plain pass of the network without a cache, over everything a row has seen: prompt, committed
// tokens, window, and the timestep tokens as tokens of the sequence.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "src/decoding/rules.h"
#include "src/decoding/session.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "tests/decoding/support.h"

namespace fewstep::decoding {
namespace {

using namespace fewstep::testing;
using models::TimestepTokens;

struct Case {
  std::string name;
  at::ScalarType dtype = at::kDouble;
  double guidance = 2.0;
  TimestepTokens tokens = TimestepTokens::shared_suffix;
  bool keep_noisy = false;  // keys of committed noisy slots stay
  int64_t levels = 3;       // 0: a session without noise
};

class Session : public ::testing::TestWithParam<Case> {};

TEST_P(Session, LogitsEqualThoseOfOnePlainPass) {
  const NoGrad no_grad;
  const Case& c = GetParam();
  models::EmbeddingNoiseConfig noise;
  noise.timestep_tokens = c.tokens;
  const TinyModel tiny({.dtype = c.dtype, .grid_height = 3, .grid_width = 4, .noise = noise});
  const std::vector<double> times = models::level_times(noise, c.levels);
  const int64_t N = tiny.length(), K = tiny.layout.image_vocab();
  Tensor prompts = tiny.prompts(5);
  DecodingSession session(tiny.model(), prompts, {.guidance = c.guidance, .window = 4, .most_pending = 5,
                                                  .noise = c.levels > 0 ? &tiny.noise() : nullptr, .times = times});
  std::vector<Seen> rows(5);
  at::manual_seed(11);
  double worst = 0, scale = 0;
  int64_t compared = 0, most_pending = 0, noisy_slots = 0, kept_noisy = 0, dropped = 0;
  while (!session.finished()) {
    const int64_t B = session.batch(), W = session.window();
    const Tensor table = tiny.model().table(), draft = at::randint(K, {B, W}, at::kLong);
    const Tensor level = at::randint(c.levels + 1, {B, W}, at::kLong) * at::rand({B, W}).gt(0.4);
    const Tensor clean = table.index_select(0, draft.flatten()).view({B, W, -1});
    const Tensor input = at::where(level.gt(0).unsqueeze(2), tiny.noise().denormalise(at::randn_like(clean)), clean);
    const Tensor logits = session.pass(input, c.levels > 0 ? level : Tensor());
    // Drafts stand or are replaced; rows commit any number of slots.
    const Tensor stands = at::rand({B, W}).lt(0.6), start = session.start().clone();
    const Tensor others = at::randint(K, {B, W + 1}, at::kLong);
    const Tensor codes = at::where(at::constant_pad_nd(stands, {0, 1}), at::constant_pad_nd(draft, {0, 1}), others);
    const Tensor count = (at::randint(W + 1, {B}, at::kLong) + 1).minimum(N - start);
    const Tensor valid = leading(c.keep_noisy ? stands : stands.logical_and(level.eq(0)));
    for (int64_t b = 0; b < B; ++b) {
      Seen& row = rows[static_cast<size_t>(b)];
      const int64_t s = start[b].item<int64_t>(), slots = std::min(W + 1, N - s), n = count[b].item<int64_t>();
      if (slots == 0) continue;
      Seen all = row;
      for (int64_t j = 0; j + 1 < slots; ++j) {
        all.embeds.push_back(input[b][j]), all.levels.push_back(level[b][j].item<int64_t>());
        noisy_slots += all.levels.back() > 0;
      }
      const Tensor expected = plain_logits(tiny, prompts[b], all, times, s, slots, c.guidance);
      worst = std::max(worst, max_difference(logits[b].narrow(0, 0, slots), expected)), scale += rms(expected), ++compared;
      const int64_t stay = std::min(valid[b].item<int64_t>(), n - 1);
      for (int64_t j = 0; j < n; ++j) {
        const bool as_fed = j < stay;  // the rest is fed again, clean
        row.embeds.push_back(as_fed ? input[b][j] : table[codes[b][j].item<int64_t>()]);
        row.levels.push_back(as_fed ? level[b][j].item<int64_t>() : 0);
        kept_noisy += row.levels.back() > 0;
      }
      most_pending = std::max(most_pending, n - stay);
    }
    session.commit(codes, count, valid);
    std::vector<int64_t> open;  // backwards: rows change places, too
    for (int64_t b = B - 1; b >= 0; --b)
      if (session.committed()[static_cast<size_t>(b)] < N) open.push_back(b);
    if (open.empty() || static_cast<int64_t>(open.size()) == B) continue;
    session.keep(open), ++dropped;
    prompts = prompts.index_select(0, at::tensor(open, at::kLong));
    std::vector<Seen> left;
    for (const int64_t b : open) left.push_back(rows[static_cast<size_t>(b)]);
    rows = left;
  }
  EXPECT_LT(worst, (c.dtype == at::kDouble ? 1e-12 : 1e-5) * scale / static_cast<double>(compared));
  RecordProperty("max_over_rms", fmt::format("{:.1e}", worst * static_cast<double>(compared) / scale));
  // The case is what it says.
  EXPECT_GT(most_pending, 1);
  EXPECT_GT(dropped, 0);
  EXPECT_EQ(noisy_slots > 0, c.levels > 0);
  EXPECT_EQ(kept_noisy > 0, c.keep_noisy);
}

const std::vector<Case> kCases = {
    {.name = "no_noise", .levels = 0},
    {.name = "no_guidance", .guidance = 1},
    {.name = "shared_suffix"},
    {.name = "shared_suffix_noisy_keys_stay", .keep_noisy = true},
    {.name = "per_slot", .tokens = TimestepTokens::per_slot},
    {.name = "per_slot_noisy_keys_stay", .tokens = TimestepTokens::per_slot, .keep_noisy = true},
    {.name = "no_timestep_tokens", .tokens = TimestepTokens::none},
    {.name = "one_level", .levels = 1},
    {.name = "float_shared_suffix", .dtype = at::kFloat},
    {.name = "float_per_slot", .dtype = at::kFloat, .tokens = TimestepTokens::per_slot},
};
INSTANTIATE_TEST_SUITE_P(Noise, Session, ::testing::ValuesIn(kCases), [](const auto& one) { return one.param.name; });

// Timestep tokens must matter, or the comparison above would not see them missing.
TEST(Session, TimestepTokensChangeTheLaw) {
  const NoGrad no_grad;
  std::vector<Tensor> logits;
  for (const auto tokens : {TimestepTokens::none, TimestepTokens::shared_suffix, TimestepTokens::per_slot}) {
    models::EmbeddingNoiseConfig noise;
    noise.timestep_tokens = tokens;
    const TinyModel tiny({.dtype = at::kDouble, .noise = noise});
    DecodingSession session(tiny.model(), tiny.prompts(1),
                            {.guidance = 2, .window = 3, .noise = &tiny.noise(), .times = models::level_times(noise, 2)});
    at::manual_seed(1);
    const Tensor input = tiny.noise().denormalise(at::randn({1, 3, 16}, at::kDouble));
    logits.push_back(session.pass(input, at::tensor({0, 1, 2}, at::kLong).view({1, 3}))[0]);
  }
  for (const size_t i : {1u, 2u}) {
    EXPECT_LT(max_difference(logits[0].narrow(0, 0, 2), logits[i].narrow(0, 0, 2)), 1e-12);  // up to the clean slot's prediction
    EXPECT_GT(max_difference(logits[0][2], logits[i][2]), 0.1);
    EXPECT_GT(max_difference(logits[1][3], logits[2][3]), 0.1);
  }
}

}  // namespace
}  // namespace fewstep::decoding
