// Laws of one token, draws from them, and the accept-or-resample rule on one slot.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "src/decoding/rules.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "tests/decoding/support.h"

namespace fewstep::decoding {
namespace {

using namespace fewstep::testing;

std::vector<double> naive_law(std::vector<double> l, const SamplingOptions& o) {
  const size_t K = l.size();
  std::vector<size_t> order(K);
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return l[a] > l[b]; });
  std::vector<double> p(K, 0.0);
  if (o.temperature == 0) {
    p[order[0]] = 1;
    return p;
  }
  const double limit = o.top_k > 0 && o.top_k < static_cast<int64_t>(K) ? l[order[static_cast<size_t>(o.top_k - 1)]] : -1e300;
  double sum = 0;
  for (size_t i = 0; i < K; ++i) sum += p[i] = l[i] >= limit ? std::exp((l[i] - l[order[0]]) / o.temperature) : 0;
  double before = 0, kept = 0;
  for (const size_t i : order) {
    p[i] /= sum;
    const bool stays = before < o.top_p;
    before += p[i];
    p[i] = stays ? p[i] : 0;
    kept += p[i];
  }
  for (double& v : p) v /= kept;
  return p;
}

void expect_naive_law(int64_t rows, int64_t K, const std::vector<int64_t>& top_ks) {
  at::manual_seed(2);
  const Tensor smooth = at::randn({rows, K}, at::kDouble) * 2, tied = (smooth * 2).round() / 2;
  for (const double temperature : {0.0, 0.7, 1.0})
    for (const int64_t top_k : top_ks)
      for (const double top_p : {1.0, 0.9, 0.4, 1e-9}) {
        const SamplingOptions o{.guidance = 1, .temperature = temperature, .top_k = top_k, .top_p = top_p};
        // Where equal codes compete for a place, any may win: ties only where all of them stay.
        const Tensor logits = temperature > 0 && top_p == 1 ? tied : smooth;
        const Tensor law = code_law(logits, o), law32 = code_law(logits.to(at::kFloat), o);
        ASSERT_EQ(law32.scalar_type(), at::kFloat);
        for (int64_t r = 0; r < rows; ++r) {
          const double* l = logits[r].const_data_ptr<double>();
          const Tensor expected = at::tensor(naive_law(std::vector<double>(l, l + K), o), at::kDouble);
          ASSERT_LT(max_difference(law[r], expected), 1e-14) << K << " " << temperature << " " << top_k << " " << top_p;
          ASSERT_LT(max_difference(law32[r], expected), 1e-6) << K << " " << temperature << " " << top_k << " " << top_p;
        }
      }
}

TEST(CodeLaw, EqualsTheNaiveComputation) {
  expect_naive_law(40, 9, {0, 1, 3, 8, 9, 20});
  expect_naive_law(5, 500, {1, 2, 77, 250, 499});
  for (const at::ScalarType type : {at::kDouble, at::kFloat}) {  // ties are kept
    const Tensor logits = at::tensor({1.0, 2.0, 2.0, 0.0, 2.0}, at::kDouble).to(type);
    const Tensor law = code_law(logits, {.guidance = 1, .temperature = 1, .top_k = 2, .top_p = 1});
    EXPECT_LT(max_difference(law, at::tensor({0.0, 1.0, 1.0, 0.0, 1.0}, at::kDouble) / 3), 1e-7);
  }
}

// As many codes as large models have, of either sign, with ties and with values that are no numbers.
TEST(CodeLaw, TopKKeepsWhatTopkFinds) {
  at::manual_seed(4);
  const Tensor logits = (at::randn({6, 8192}, at::kFloat) * 40).round() / 8;
  for (const int64_t k : {1, 50, 2000, 8191}) {
    const Tensor smallest = std::get<0>(logits.topk(k, -1)).amin(-1, true);
    EXPECT_TRUE(code_law(logits, {.top_k = k}).gt(0).le(logits.ge(smallest)).all().item<bool>()) << k;  // far ones may underflow
    EXPECT_LT(max_difference(code_law(logits, {.top_k = k}), at::softmax(logits.masked_fill(logits.lt(smallest), -INFINITY), -1)), 1e-7) << k;
  }
  const Tensor broken = at::where(at::arange(8192).remainder(3).eq(0), std::nan(""), logits);
  EXPECT_FALSE(code_law(broken, {.top_k = 2000}).isfinite().any().item<bool>());
}

TEST(Draw, InvertsTheCumulativeDistribution) {
  const Tensor weights = at::tensor({0.0, 3.0, 0.0, 0.5, 1.5, 0.0}, at::kDouble), law = weights / weights.sum();
  const int64_t M = 100000;
  const Tensor u = (at::arange(M, at::kDouble) + 0.5) / static_cast<double>(M);
  const Tensor seen = at::bincount(draw(weights.expand({M, -1}), u), {}, 6).to(at::kDouble) / static_cast<double>(M);
  EXPECT_LT(max_difference(seen, law), 2.0 / static_cast<double>(M));
  // The ends of [0, 1) never meet a code without mass.
  const Tensor ends = at::tensor({0.0, 1.0 - 0x1.0p-24}, at::kDouble).to(at::kFloat);
  EXPECT_TRUE(draw(weights.to(at::kFloat).expand({2, -1}), ends).equal(at::tensor({1, 4}, at::kLong)));
  EXPECT_TRUE(draw((weights * 1e-30).to(at::kFloat).expand({2, -1}), ends).equal(at::tensor({1, 4}, at::kLong)));
}

TEST(Draw, GumbelArgmaxFollowsTheLaw) {
  const Tensor p = at::tensor({0.4, 0.0, 0.35, 0.05, 0.2}, at::kDouble);
  const int64_t rows = 50000;
  const DecoderRandomness randomness(some_ids(rows), 3, 2, at::TensorOptions());
  const Tensor exp_g = randomness.gumbel(std::vector<int64_t>(static_cast<size_t>(rows), 1), 1, 5).squeeze(1);
  const Fit f = fit(at::bincount(gumbel_argmax(p.expand({rows, -1}), exp_g), {}, 5).unsqueeze(0), p.unsqueeze(0));
  EXPECT_GT(f.p, 1e-3);
  EXPECT_EQ(f.impossible, 0);
  const Tensor ends = exp_gumbel(at::tensor({0.0, 1.0 - 0x1.0p-24}, at::kDouble).to(at::kFloat));
  EXPECT_TRUE(ends.isfinite().all().item<bool>() && ends.gt(0).all().item<bool>());
}

TEST(Draw, GumbelNoiseIsTheSameInPieces) {
  const DecoderRandomness randomness(at::tensor({4, 9}, at::kLong), 3, 7, at::TensorOptions());
  const Tensor all = randomness.gumbel({0, 0}, 7, 5);
  const Tensor piece = randomness.gumbel({3, 1}, 2, 5);
  EXPECT_TRUE(piece[0].equal(all[0].narrow(0, 3, 2)));
  EXPECT_TRUE(piece[1].equal(all[1].narrow(0, 1, 2)));
  EXPECT_FALSE(all[0].equal(all[1]));
}

TEST(Residual, IsThePositivePartOrTheLawItself) {
  const Tensor p = at::tensor({0.5, 0.3, 0.2, 0.0}, at::kDouble), q = at::tensor({0.25, 0.25, 0.25, 0.25}, at::kDouble);
  EXPECT_LT(max_difference(residual(p, q), at::tensor({0.25, 0.05, 0.0, 0.0}, at::kDouble)), 1e-15);
  EXPECT_TRUE(residual(p, p).equal(p));
}

TEST(Entropy, CountsZerosAsZero) {
  const Tensor p = at::tensor({0.5, 0.5, 0.0, 0.0, 0.0, 1.0}, at::kDouble).view({2, 3});
  EXPECT_LT(max_difference(entropy(p), at::tensor({std::log(2.0), 0.0}, at::kDouble)), 1e-15);
}

// --- one slot

constexpr SamplingOptions kSampling{.guidance = 2.0, .temperature = 1.5, .top_k = 3, .top_p = 1.0};

// Laws [S, K] of slot 2 of all images with top-k: what a slot meets when the tokens before it change.
Tensor laws_of_a_slot(const TinyModel& tiny) {
  const Tensor images = all_images(tiny.layout).narrow(0, 0, 16);
  return code_law(plain_logits(tiny, tiny.prompts(1).expand({16, -1}), images, kSampling.guidance).select(1, 2), kSampling);
}

// Law of a slot whose draft ~ draft_law is credited with `credited` and verified against p.
Tensor verified(const Tensor& draft_law, const Tensor& credited, const Tensor& p) {
  const Tensor stays = draft_law * at::where(credited > 0, (p / credited).clamp_max(1), at::ones_like(p)), rest = residual(p, credited);
  return stays + (1 - stays.sum()) * rest / rest.sum();
}

TEST(OneSlot, AcceptOrResampleGivesExactlyTheLaw) {
  const TinyModel tiny({.dtype = at::kDouble});
  const Tensor laws = laws_of_a_slot(tiny), even = at::full({4}, 0.25, at::kDouble);
  double worst_again = 0;
  for (int64_t i = 0; i < laws.size(0); ++i)
    for (const Tensor& q : {laws[(i + 1) % 16], laws[(i + 5) % 16], even}) {
      const Tensor p = laws[i], once = verified(q, q, p);
      EXPECT_LT(max_difference(once, p), 1e-12);
      EXPECT_LT(max_difference(verified(once, p, p), p), 1e-12);  // verified again with the law it has: nothing happens
      worst_again = std::max(worst_again, 0.5 * (verified(once, q, p) - p).abs().sum().item<double>());
    }
  EXPECT_GT(worst_again, 0.01);  // with the old law: the known mistake
}

// The rule itself, on a grid of uniforms and every draft in proportion to its law.
TEST(OneSlot, JudgeDrawsFromTheLaw) {
  const TinyModel tiny({.dtype = at::kDouble});
  const Tensor laws = laws_of_a_slot(tiny);
  const int64_t K = 4, M = 128, rows = K * M * M;
  for (const Coupling coupling : {Coupling::none, Coupling::maximal}) {
    const DecoderOptions options{.kind = DecoderKind::sjd, .sampling = kSampling, .window = 1, .coupling = coupling};
    const DecoderRandomness randomness(some_ids(rows), 1, tiny.length(), at::TensorOptions());
    const Rule rule(tiny.model(), options, randomness);
    Window window(tiny.model(), options, nullptr, {0.0}, randomness, rows);
    const Tensor row = at::arange(rows, at::kLong), even = (at::arange(M, at::kDouble) + 0.5) / static_cast<double>(M);
    const Tensor accept = even.index_select(0, row.floor_divide(K) % M).unsqueeze(1).expand({-1, 2});
    const Tensor again = even.index_select(0, row.floor_divide(K * M)).unsqueeze(1).expand({-1, 2});
    window.draft = (row % K).unsqueeze(1);
    for (int64_t i = 0; i < 4; ++i) {
      const Tensor p = laws[i], q = laws[i + 4];
      window.law = q.expand({rows, 1, K});
      const Verdict verdict = rule.judge(window, p.expand({rows, 2, K}), accept, again);
      const Tensor weight = q.index_select(0, row % K) / static_cast<double>(M * M);
      EXPECT_LT(max_difference(at::bincount(verdict.y.select(1, 0), weight, K), p), 2.0 / static_cast<double>(M));
      const Tensor kept = verdict.kept.select(1, 0);
      EXPECT_TRUE(verdict.y.select(1, 0).masked_select(kept).equal((row % K).masked_select(kept)));
    }
    // A draft from the very law it meets always stands.
    window.law = laws[0].expand({rows, 1, K});
    const Verdict same = rule.judge(window, laws[0].expand({rows, 2, K}), at::full_like(accept, 1.0 - 0x1.0p-24), again);
    EXPECT_TRUE(same.kept.select(1, 0).equal(laws[0].gt(0).index_select(0, row % K)));
  }
}

}  // namespace
}  // namespace fewstep::decoding
