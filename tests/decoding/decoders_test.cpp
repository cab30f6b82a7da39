// What a run leaves behind, row-parallel decoding, relaxed acceptance, structural tokens, likelihoods, options that are refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "src/base/error.h"
#include "src/config/config.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "tests/decoding/support.h"
#include "tests/support/message_of.h"

namespace fewstep::decoding {
namespace {

using namespace fewstep::testing;
using ::testing::HasSubstr;
using enum DecoderKind;

constexpr SamplingOptions kSampling{.guidance = 2.0, .temperature = 1.5, .top_k = 3, .top_p = 1.0};
constexpr uint64_t kSeed = 5;

std::vector<DecoderOptions> one_of_each() {
  std::vector<DecoderOptions> all = {
      {.kind = ar}, {.kind = jacobi, .window = 3}, {.kind = sjd, .window = 3},
      {.kind = sjd, .window = 5, .coupling = Coupling::maximal},
      {.kind = sjd2, .window = 4, .steps = 3}, {.kind = sjd2, .window = 4, .steps = 2, .coupling = Coupling::gumbel},
      {.kind = sjd2, .window = 4, .steps = 2, .mode = Sjd2Mode::published}, {.kind = zipar, .window = 2}};
  for (DecoderOptions& o : all) o.sampling = kSampling;
  return all;
}

// --- records

class Records : public ::testing::TestWithParam<bool> {};  // row ends or none

TEST_P(Records, AgreeWithThemselves) {
  const TinyModel tiny({.grid_height = 3, .row_end = GetParam()});
  const int64_t B = 64;
  const Tensor prompts = tiny.prompts(B), forced = tiny.layout.forced_codes();
  for (const DecoderOptions& o : one_of_each()) {
    const Decoded d = decode(tiny.model(), prompts, some_ids(B), kSeed, o, &tiny.noise());
    const Tensor at = d.committed_at;
    EXPECT_TRUE(d.codes.ge(0).all().item<bool>() && at.ge(0).all().item<bool>()) << label(o);
    EXPECT_TRUE(o.kind == zipar || at.diff(1, 1).ge(0).all().item<bool>()) << label(o) << ": slots are committed in order";
    EXPECT_TRUE(d.passes.equal(std::get<0>(at.max(1)) + 1)) << label(o);
    EXPECT_EQ(d.batch_passes, d.passes.max().item<int64_t>()) << label(o);
    EXPECT_GE(d.seconds, d.forward_seconds);
    EXPECT_GT(d.forward_seconds, 0);
    // A pass commits something as long as the image is not complete.
    for (int64_t b = 0; b < B; ++b) EXPECT_EQ(std::get<0>(at::_unique(at[b])).size(0), d.passes[b].item<int64_t>()) << label(o);
    EXPECT_TRUE(d.codes.eq(tiny.layout.codebook).equal(forced.ge(0).expand_as(d.codes))) << label(o);
    EXPECT_TRUE(d.entropy.gt(0).equal(forced.lt(0).expand_as(d.codes))) << label(o);
    EXPECT_LE(d.entropy.max().item<double>(), std::log(3.0) + 1e-6) << label(o) << ": three codes have mass";
  }
}
INSTANTIATE_TEST_SUITE_P(RowEndsOrNot, Records, ::testing::Bool());

TEST(RecordsOfAges, CountEveryDraftThatWasLookedAt) {
  const TinyModel tiny({.grid_height = 3});
  const int64_t B = 64, N = tiny.length();
  for (DecoderOptions o : one_of_each()) {
    if (o.kind == ar || o.kind == zipar) continue;
    o.window = N;  // no slot behind the window: what is committed was looked at
    const Decoded d = decode(tiny.model(), tiny.prompts(B), some_ids(B), kSeed, o, &tiny.noise());
    EXPECT_EQ(d.tried_by_age.sum().item<int64_t>(), B * N) << label(o);
    EXPECT_TRUE(d.kept_by_age.le(d.tried_by_age).all().item<bool>()) << label(o);
    EXPECT_GT(d.kept_by_age.sum().item<int64_t>(), 0) << label(o);
    // Every pass of an image but its last ends at a draft that did not stand, or, gated, at a noisy one.
    const int64_t refused = (d.tried_by_age - d.kept_by_age).sum().item<int64_t>(), passes = d.passes.sum().item<int64_t>();
    EXPECT_LE(refused, passes) << label(o);
    EXPECT_TRUE(o.kind == sjd2 || refused >= passes - B) << label(o);
  }
}

// Ages follow from when slots were committed: slot i enters with the first pass that begins less than W slots in front of it.
TEST(RecordsOfAges, BeginWhenASlotEntersTheWindow) {
  const TinyModel tiny({.grid_height = 3});
  const int64_t B = 64, N = tiny.length(), W = 3;
  for (DecoderOptions o : one_of_each()) {
    if (o.kind == ar || o.kind == zipar) continue;
    o.window = W;
    const Decoded d = decode(tiny.model(), tiny.prompts(B), some_ids(B), kSeed, o, &tiny.noise());
    Tensor expected = at::zeros_like(d.tried_by_age);
    for (int64_t b = 0; b < B; ++b)
      for (int64_t i = 0; i < N; ++i) {
        const Tensor at = d.committed_at[b];
        const auto start_of = [&](int64_t pass) { return at.lt(pass).sum().item<int64_t>(); };
        const int64_t pass = at[i].item<int64_t>();
        if (i - start_of(pass) == W) continue;  // behind the window: drawn, not verified
        int64_t entered = 0;
        while (start_of(entered) + W <= i) ++entered;
        expected[pass - entered] += 1;
      }
    EXPECT_TRUE(expected.equal(d.tried_by_age)) << label(o);
  }
}

TEST(Observer, SeesEveryPass) {
  const TinyModel tiny({.row_end = true});
  const int64_t B = 16, K = 3;
  const DecoderOptions o{.kind = sjd2, .sampling = kSampling, .window = 4, .steps = K};
  std::vector<Tensor> codes, levels;
  const auto observe = [&](int64_t pass, const Tensor& c, const Tensor& l) {
    ASSERT_EQ(pass, static_cast<int64_t>(codes.size()));
    codes.push_back(c.clone()), levels.push_back(l.clone());
  };
  const Decoded d = decode(tiny.model(), tiny.prompts(B), some_ids(B), kSeed, o, &tiny.noise(), observe);
  ASSERT_EQ(static_cast<int64_t>(codes.size()), d.batch_passes);
  for (size_t pass = 0; pass < codes.size(); ++pass) {
    const Tensor done = d.committed_at.le(static_cast<int64_t>(pass));
    EXPECT_TRUE(codes[pass].masked_select(done).equal(d.codes.masked_select(done))) << pass;
    EXPECT_EQ(levels[pass].masked_fill(done.logical_not(), 0).sum().item<int64_t>(), 0) << pass;
  }
  EXPECT_TRUE(codes.back().equal(d.codes));
  EXPECT_TRUE(codes[0].select(1, 6).eq(-1).all().item<bool>());  // the window has not come there
  // After the first pass: two slots fell one level, a new one entered, and the row end was never noisy.
  EXPECT_TRUE(levels[0][0].narrow(0, 0, 5).equal(at::tensor(std::vector<int64_t>{0, K - 1, K - 1, 0, K}, at::kLong)));
  EXPECT_TRUE(codes[0].select(1, 3).eq(tiny.layout.codebook).all().item<bool>());
}

TEST(Denoising, TheFirstPassesOfAGateCommitOneTokenEach) {
  const TinyModel tiny;
  const int64_t N = tiny.length(), B = 32;
  for (const int64_t K : {1, 2, 4}) {
    for (const Coupling c : {Coupling::none, Coupling::maximal, Coupling::gumbel}) {
      const Decoded d = decode(tiny.model(), tiny.prompts(B), some_ids(B), kSeed,
                               {.kind = sjd2, .sampling = kSampling, .window = N, .steps = K, .coupling = c}, &tiny.noise());
      for (int64_t k = 0; k < K; ++k) EXPECT_TRUE(d.committed_at.eq(k).sum(1).eq(1).all().item<bool>()) << k;
      EXPECT_LT(d.passes.to(at::kDouble).mean().item<double>(), static_cast<double>(N)) << K;  // then more at once
    }
  }
}

// --- structural tokens

TEST(StructuralTokens, CostNoPass) {
  const TinyModel tiny({.grid_height = 3, .row_end = true});
  const int64_t ends = tiny.layout.grid_height, B = 32;
  for (const DecoderOptions& o : one_of_each()) {
    if (o.kind == zipar) continue;
    const Decoded d = decode(tiny.model(), tiny.prompts(B), some_ids(B), kSeed, o, &tiny.noise());
    if (o.kind == ar) {
      EXPECT_TRUE(d.passes.eq(tiny.length() - ends).all().item<bool>());
    }
    // A row end is never the only token of a pass: it comes with a neighbour. The last one has none behind it, and waits for a
    // pass of its own where a whole window was accepted and the token in front of it stood behind that window.
    const Tensor before = d.committed_at.narrow(1, 0, tiny.length() - 1), after = d.committed_at.narrow(1, 1, tiny.length() - 1);
    const Tensor together = before.eq(after);  // [B, N - 1]: slots i and i + 1
    for (int64_t i = tiny.layout.grid_width; i + 1 < tiny.length(); i += tiny.layout.row_length())
      EXPECT_TRUE(together.select(1, i - 1).logical_or(together.select(1, i)).all().item<bool>()) << label(o) << " " << i;
    EXPECT_GT(together.select(1, -1).sum().item<int64_t>(), B / 2) << label(o);
  }
}

// --- rows in parallel

TEST(RowParallel, WithAWholeRowAheadItIsAutoregressive) {
  for (const bool row_end : {false, true}) {
    const TinyModel tiny({.dtype = at::kDouble, .grid_height = 3, .row_end = row_end});
    const int64_t B = 64;
    const auto run = [&](DecoderKind kind, int64_t window) {
      return decode(tiny.model(), tiny.prompts(B), some_ids(B), kSeed, {.kind = kind, .sampling = kSampling, .window = window});
    };
    const Decoded plain = run(ar, 1);
    for (const int64_t window : {tiny.layout.row_length(), tiny.length()}) {
      const Decoded d = run(zipar, window);
      EXPECT_TRUE(d.codes.equal(plain.codes)) << window;
      EXPECT_LT(max_difference(d.entropy, plain.entropy), 1e-6) << window;
      EXPECT_EQ(d.batch_passes, tiny.length());
    }
    EXPECT_FALSE(run(zipar, 1).codes.equal(plain.codes));
  }
}

TEST(RowParallel, EverySlotComesWhenTheRowAboveIsFarEnoughAhead) {
  const TinyModel tiny({.grid_height = 3, .grid_width = 4});
  const int64_t h = 3, w = 4, B = 4;
  for (const int64_t lead : {1, 2, 3, 4}) {
    const Decoded d = decode(tiny.model(), tiny.prompts(B), some_ids(B), kSeed, {.kind = zipar, .sampling = kSampling, .window = lead});
    const Tensor expected = (at::arange(h, at::kLong) * lead).view({h, 1}) + at::arange(w, at::kLong);
    EXPECT_TRUE(d.committed_at.equal(expected.flatten().expand_as(d.committed_at))) << lead;
    EXPECT_TRUE(d.passes.eq((h - 1) * lead + w).all().item<bool>()) << lead;
  }
}

// --- relaxed acceptance

TEST(Relaxed, WithoutAnyAddedProbabilityItIsPlainSjd) {
  const TinyModel tiny;
  const int64_t B = 256;
  for (const Coupling c : {Coupling::none, Coupling::maximal}) {
    DecoderOptions o{.kind = sjd, .sampling = kSampling, .window = 4, .coupling = c};
    const auto run = [&] { return decode(tiny.model(), tiny.prompts(B), some_ids(B), kSeed, o); };
    const Decoded plain = run();
    o.relaxed_neighbours = 2, o.relaxed_delta = 0;
    EXPECT_TRUE(run().codes.equal(plain.codes));
    o.relaxed_delta = 0.3;
    const Decoded relaxed = run();
    EXPECT_FALSE(relaxed.codes.equal(plain.codes));
    EXPECT_LT(relaxed.passes.sum().item<int64_t>(), plain.passes.sum().item<int64_t>());
  }
}

// --- likelihoods

TEST(Likelihood, SumsToOneOverAllImagesAndMarksWhatTopKExcludes) {
  for (const bool row_end : {false, true}) {
    const TinyModel tiny({.codebook = 3, .row_end = row_end});
    SamplingOptions two = kSampling, all = kSampling;
    two.top_k = 2, all.top_k = 0;
    const Tensor images = all_images(tiny.layout), laws = tiny.joint_law(two);
    for (int64_t i = 0; i < TinyModel::kPrompts; ++i) {
      const Tensor prompts = tiny.prompts(2).narrow(0, i, 1).expand({images.size(0), -1});
      const Likelihood l = likelihood(tiny.model(), prompts, images, two);
      EXPECT_NEAR(l.nll.sum(1).neg().exp().sum().item<double>(), 1.0, 1e-5);
      EXPECT_TRUE(l.outside.any(1).equal(laws[i].eq(0)));
      EXPECT_TRUE(l.nll.eq(0).equal(tiny.layout.forced_codes().ge(0).expand_as(l.nll)));
      EXPECT_LT(max_difference(l.nll.sum(1).neg().exp(), tiny.joint_law(all)[i]), 1e-6);
      EXPECT_FALSE(likelihood(tiny.model(), prompts, images, all).outside.any().item<bool>());
    }
  }
}

// --- options

TEST(Options, WhatCannotWorkIsRefusedByName) {
  const TinyModel tiny;
  const auto message = [&](const DecoderOptions& o) { return message_of([&] { check(o, tiny.length()); }); };
  EXPECT_THAT(message({.kind = sjd, .window = 7}), ::testing::AllOf(HasSubstr("window"), HasSubstr("7"), HasSubstr("6")));
  EXPECT_THAT(message({.kind = zipar, .window = 0}), HasSubstr("window"));
  EXPECT_THAT(message({.kind = sjd2, .window = 3, .steps = 0}), HasSubstr("steps"));
  EXPECT_THAT(message({.kind = jacobi, .window = 3, .coupling = Coupling::maximal}), HasSubstr("coupling"));
  EXPECT_THAT(message({.kind = sjd2, .window = 3, .relaxed_neighbours = 2}), HasSubstr("relaxed_neighbours"));
  EXPECT_THAT(message({.kind = sjd, .window = 3, .coupling = Coupling::gumbel, .relaxed_neighbours = 2}), HasSubstr("relaxed_neighbours"));
  EXPECT_THROW(check({.kind = sjd, .window = 7}, tiny.length()), ConfigError);
  EXPECT_THAT(message({.kind = sjd, .window = 4, .refine = false}), HasSubstr("only sjd2"));
  for (const DecoderOptions& o : one_of_each()) EXPECT_EQ(message(o), "(no error)") << label(o);
  EXPECT_EQ(message({.kind = ar, .window = 1000}), "(no error)");
  EXPECT_THAT(message_of([&] { decode(tiny.model(), tiny.prompts(1), some_ids(1), 1, {.kind = sjd2, .window = 3}); }), HasSubstr("noise"));
}

TEST(Options, AreReadByTheirNames) {
  const auto o = config::parse<DecoderOptions>(
      "decoder: sjd2\nwindow: 9\nsteps: 5\nmode: published\ncoupling: gumbel\nrefill: left\nrefine: false\nnoisy_kv: keep\n"
      "denoise_with: expected\nrelaxed_neighbours: 3\nrelaxed_delta: 0.25\ndeterministic: true\n");
  EXPECT_EQ(label(o), "sjd2 published K=5 W=9 gumbel no refining expected keep relaxed 3");
  EXPECT_TRUE(o.refill == Refill::left && o.relaxed_delta == 0.25 && o.deterministic);
  for (const auto& [name, kind] : {std::pair{"ar", ar}, {"jacobi", jacobi}, {"sjd", sjd}, {"sjd2", sjd2}, {"zipar", zipar}}) {
    EXPECT_EQ(config::parse<DecoderOptions>(std::string("decoder: ") + name).kind, kind);
    EXPECT_EQ(name_of(kind), name);
  }
}

// Weights that are no numbers end in an error, never in images.
TEST(Decoders, LawsThatAreNotFiniteAreAnError) {
  TinyModel tiny;
  const NoGrad no_grad;
  for (const DecoderOptions& o : one_of_each())
    EXPECT_NO_THROW(decode(tiny.model(), tiny.prompts(2), some_ids(2), kSeed, o, &tiny.noise())) << label(o);
  tiny.network.embedding_weight().fill_(std::nan(""));
  for (const DecoderOptions& o : one_of_each())
    EXPECT_THROW(decode(tiny.model(), tiny.prompts(2), some_ids(2), kSeed, o, &tiny.noise()), NumericError) << label(o);
}

}  // namespace
}  // namespace fewstep::decoding
