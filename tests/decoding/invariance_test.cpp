// What must come out token for token: whatever the batch; whatever the decoder, where its randomness is fixed or absent.
#include <gtest/gtest.h>

#include "src/tensor/ops.h"
#include "tests/decoding/support.h"

namespace fewstep::decoding {
namespace {

using namespace fewstep::testing;
using models::NoiseSchedule;
using models::TimestepTokens;
using enum DecoderKind;

constexpr SamplingOptions kSampling{.guidance = 2.0, .temperature = 1.5, .top_k = 3, .top_p = 1.0};
constexpr uint64_t kSeed = 5;
constexpr Coupling kCouplings[] = {Coupling::none, Coupling::maximal, Coupling::gumbel};

TinySetup setup_of(at::ScalarType dtype, TimestepTokens tokens = TimestepTokens::shared_suffix,
                   NoiseSchedule schedule = NoiseSchedule::flow_matching) {
  TinySetup s{.dtype = dtype, .grid_height = 2, .grid_width = 4};
  s.noise.timestep_tokens = tokens, s.noise.schedule = schedule;
  return s;
}

std::vector<DecoderOptions> decoders(int64_t N) {
  std::vector<DecoderOptions> all;
  for (const Coupling c : {Coupling::none, Coupling::gumbel}) {
    all.push_back({.kind = ar, .coupling = c});
    for (const int64_t W : {int64_t{1}, int64_t{3}, N}) all.push_back({.kind = jacobi, .window = W, .coupling = c});
  }
  for (const Coupling c : kCouplings)
    for (const Refill refill : {Refill::one_hot, Refill::uniform, Refill::left})
      for (const int64_t W : {int64_t{1}, int64_t{3}, N}) all.push_back({.kind = sjd, .window = W, .coupling = c, .refill = refill});
  return all;
}

std::vector<DecoderOptions> denoising_decoders(const std::vector<std::pair<int64_t, int64_t>>& windows_and_steps) {
  std::vector<DecoderOptions> all;
  for (const auto& [W, K] : windows_and_steps)
    for (const Sjd2Mode mode : {Sjd2Mode::gated, Sjd2Mode::published})
      for (const Coupling c : kCouplings) all.push_back({.kind = sjd2, .window = W, .steps = K, .mode = mode, .coupling = c});
  return all;
}

// In float64 no draw is close enough to a boundary for the order of sums to matter.
void expect_batch_of_eight_equals_singles(const TinyModel& tiny, const std::vector<DecoderOptions>& decoders) {
  const Tensor prompts = tiny.prompts(8), ids = some_ids(8, 100);
  int64_t compacted = 0;
  for (DecoderOptions o : decoders) {
    o.sampling = kSampling;
    const Decoded batch = decode(tiny.model(), prompts, ids, kSeed, o, &tiny.noise());
    for (int64_t b = 0; b < 8; ++b) {
      const Decoded one = decode(tiny.model(), prompts.narrow(0, b, 1), ids.narrow(0, b, 1), kSeed, o, &tiny.noise());
      EXPECT_TRUE(one.codes[0].equal(batch.codes[b])) << label(o) << ", image " << b;
      EXPECT_TRUE(one.committed_at[0].equal(batch.committed_at[b])) << label(o) << ", image " << b;
      EXPECT_LT(max_difference(one.entropy[0], batch.entropy[b]), 1e-6) << label(o) << ", image " << b;
    }
    const Tensor order = std::get<0>(batch.passes.sort());
    compacted += order[3].item<int64_t>() < order[7].item<int64_t>();  // half were done earlier: rows were dropped
    EXPECT_EQ(batch.batch_passes, order[7].item<int64_t>());
  }
  EXPECT_GT(compacted, 0);
}

TEST(BatchOfEight, EqualsEightSingleRuns) {
  const TinyModel tiny(setup_of(at::kDouble));
  expect_batch_of_eight_equals_singles(tiny, decoders(tiny.length()));
}

TEST(BatchOfEight, EqualsEightSingleRunsWhileDenoising) {
  const TinyModel tiny(setup_of(at::kDouble));
  expect_batch_of_eight_equals_singles(tiny, denoising_decoders({{1, 1}, {3, 3}, {tiny.length(), 3}}));
}

TEST(BatchOfEight, EqualsEightSingleRunsForEveryWayToDenoise) {
  std::vector<DecoderOptions> all;
  for (const Sjd2Mode mode : {Sjd2Mode::gated, Sjd2Mode::published})
    for (const NoisyKv kv : {NoisyKv::refeed, NoisyKv::keep})
      for (const bool refine : {true, false})
        for (const DenoiseWith with : {DenoiseWith::sampled, DenoiseWith::expected})
          if (mode == Sjd2Mode::published || kv == NoisyKv::refeed)
            all.push_back({.kind = sjd2, .window = 4, .steps = 2, .mode = mode, .coupling = Coupling::maximal,
                           .refine = refine, .noisy_kv = kv, .denoise_with = with});
  expect_batch_of_eight_equals_singles(TinyModel(setup_of(at::kDouble)), all);
  for (const TimestepTokens tokens : {TimestepTokens::none, TimestepTokens::per_slot}) {
    const TinyModel tiny(setup_of(at::kDouble, tokens, NoiseSchedule::vp));
    expect_batch_of_eight_equals_singles(tiny, denoising_decoders({{4, 2}}));
  }
  TinySetup ends = setup_of(at::kDouble);
  ends.row_end = true;
  expect_batch_of_eight_equals_singles(TinyModel(ends), denoising_decoders({{4, 3}}));
}

TEST(Deterministic, SameBitsWhateverTheBatch) {
  const TinyModel tiny(setup_of(at::kFloat));
  const Tensor prompts = tiny.prompts(6), ids = some_ids(6), backwards = at::arange(5, -1, -1, at::kLong);
  for (const DecoderKind kind : {ar, jacobi, sjd, sjd2, zipar}) {
    const DecoderOptions o{.kind = kind, .sampling = kSampling, .window = 3, .steps = 2, .deterministic = true};
    const auto run = [&](const Tensor& rows) {
      return decode(tiny.model(), prompts.index_select(0, rows), ids.index_select(0, rows), kSeed, o, &tiny.noise());
    };
    const Decoded all = run(at::arange(6, at::kLong)), reversed = run(backwards), some = run(at::tensor({4, 2}, at::kLong));
    for (const auto field : {&Decoded::codes, &Decoded::committed_at, &Decoded::entropy, &Decoded::passes}) {
      EXPECT_TRUE((all.*field).equal((reversed.*field).index_select(0, backwards))) << label(o);
      EXPECT_TRUE((all.*field)[4].equal((some.*field)[0])) << label(o);
    }
    EXPECT_TRUE(all.tried_by_age.equal(reversed.tried_by_age));
  }
}

TEST(Randomness, ImagesDifferByIdAndSeed) {
  const TinyModel tiny(setup_of(at::kFloat));
  const Tensor prompts = tiny.prompts(1).expand({32, -1});
  for (const DecoderKind kind : {ar, jacobi, sjd, sjd2, zipar}) {
    const DecoderOptions o{.kind = kind, .sampling = kSampling, .window = 3, .steps = 2};
    const auto run = [&](int64_t first, uint64_t seed) {
      return decode(tiny.model(), prompts, some_ids(32, first), seed, o, &tiny.noise()).codes;
    };
    EXPECT_GT(std::get<0>(at::_unique(cell_of(tiny.layout, run(0, 1)))).size(0), 16) << label(o);
    EXPECT_FALSE(run(0, 1).equal(run(0, 2))) << label(o);
    EXPECT_TRUE(run(0, 1).narrow(0, 8, 24).equal(run(8, 1).narrow(0, 0, 24))) << label(o);
  }
}

// --- fixed Gumbel noise, or none at all: every exact decoder gives the autoregressive image

void expect_autoregressive(const TinyModel& tiny, const SamplingOptions& sampling, const std::vector<DecoderOptions>& decoders,
                           Coupling of_ar, int64_t rows) {
  const Tensor prompts = tiny.prompts(rows), ids = some_ids(rows);
  const Decoded reference = decode(tiny.model(), prompts, ids, kSeed, {.kind = ar, .sampling = sampling, .coupling = of_ar});
  EXPECT_TRUE(reference.passes.eq(tiny.length()).all().item<bool>());
  for (DecoderOptions o : decoders) {
    if (o.coupling != of_ar && sampling.temperature > 0) continue;
    o.sampling = sampling;
    const Decoded d = decode(tiny.model(), prompts, ids, kSeed, o, &tiny.noise());
    EXPECT_EQ(d.codes.eq(reference.codes).all(1).logical_not().sum().item<int64_t>(), 0) << label(o);
  }
}

TEST(FixedGumbelNoise, EveryExactDecoderDrawsTheAutoregressiveImage) {
  const TinyModel tiny(setup_of(at::kDouble));
  std::vector<DecoderOptions> all = decoders(tiny.length());
  for (const DecoderOptions& o : denoising_decoders({{3, 1}, {4, 2}, {tiny.length(), 3}}))
    if (!lossy(o)) all.push_back(o);
  expect_autoregressive(tiny, kSampling, all, Coupling::gumbel, 1024);
}

TEST(Greedy, EveryExactDecoderDrawsTheAutoregressiveImage) {
  const TinyModel tiny(setup_of(at::kDouble));
  std::vector<DecoderOptions> all = decoders(tiny.length());
  for (const DecoderOptions& o : denoising_decoders({{3, 1}, {4, 2}, {tiny.length(), 3}}))
    if (!lossy(o)) all.push_back(o);
  expect_autoregressive(tiny, {.guidance = 2.0, .temperature = 0.0, .top_k = 0, .top_p = 1.0}, all, Coupling::none, 2);
}

}  // namespace
}  // namespace fewstep::decoding
