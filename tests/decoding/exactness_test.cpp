// Chi-square of every decoder against the enumerated law of a tiny transformer with guidance 2 and top-k, at fixed seeds.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <functional>

#include "src/decoding/rules.h"
#include "src/decoding/session.h"
#include "src/decoding/window.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "tests/decoding/support.h"

namespace fewstep::decoding {
namespace {

using namespace fewstep::testing;

constexpr SamplingOptions kSampling{.guidance = 2.0, .temperature = 1.5, .top_k = 3, .top_p = 1.0};
constexpr int64_t kRows = 1024, kBatches = 20;  // 20,480 images a decoder
constexpr uint64_t kSeed = 7;
constexpr double kExact = 1e-3, kRejected = 1e-6;  // p-values

const TinyModel& tiny() {
  static const TinyModel model;
  return model;
}
const TinyModel& with_row_ends() {
  static const TinyModel model({.row_end = true});
  return model;
}

using Draw = std::function<Tensor(const Tensor& prompts, const Tensor& ids)>;  // -> codes [B, N]

Fit fit_of(const TinyModel& model, const Draw& draw_images) {
  const Tensor& laws = model.joint_law(kSampling);
  const Tensor prompts = model.prompts(kRows);
  const int64_t cells = laws.size(1);
  Tensor counts = at::zeros({laws.numel()}, at::kLong);
  for (int64_t batch = 0; batch < kBatches; ++batch) {
    const Tensor codes = draw_images(prompts, some_ids(kRows, batch * kRows));
    const Tensor cell = cell_of(model.layout, codes) + at::arange(kRows, at::kLong) % TinyModel::kPrompts * cells;
    counts += at::bincount(cell, {}, laws.numel());
  }
  return fit(counts.view_as(laws), laws);
}

void report(const std::string& name, const Fit& f, double passes) {
  const std::string mean = passes > 0 ? fmt::format("{:.3f}", passes) : "-";
  fmt::print("{:40s} passes {:>6s}  chi-square {:8.1f} / {}  p {:8.2g}  TV {:.4f}\n", name, mean, f.chi2, f.df, f.p, f.tv);
}

TEST(EnumeratedLaw, HangsOnEveryTokenBefore) {
  // Total variation between the laws of slot i after two images that differ in slot j < i only.
  const Tensor images = all_images(tiny().layout);
  const Tensor prompt = tiny().prompts(1).expand({images.size(0), -1});
  const Tensor law = code_law(plain_logits(tiny(), prompt, images, kSampling.guidance), kSampling);  // [S, N, K]
  const int64_t N = tiny().length(), K = tiny().layout.codebook;
  for (int64_t j = 0; j < N - 1; ++j) {
    const Tensor other = cell_of(tiny().layout, images.index_fill(1, at::scalar_tensor(j, at::kLong), 0));
    const Tensor tv = (law - law.index_select(0, other)).abs().sum(2).mul(0.5).mean(0) * K / (K - 1);  // [N]
    for (int64_t i = 0; i <= j; ++i) EXPECT_LT(tv[i].item<double>(), 1e-5);
    for (int64_t i = j + 1; i < N; ++i) EXPECT_GT(tv[i].item<double>(), 0.2) << j << " -> " << i;
  }
  const Tensor& laws = tiny().joint_law(kSampling);
  EXPECT_NEAR(laws.sum().item<double>(), 2.0, 1e-9);
  EXPECT_GT(laws.gt(0).sum().item<int64_t>(), 2 * 700);
  EXPECT_GT((laws[0] - laws[1]).abs().sum().item<double>() / 2, 0.2);
}

// --- decoders

struct Case {
  DecoderOptions options;
  bool exact = true, row_end = false;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  const auto add = [&](DecoderOptions o, bool exact = true, bool row_end = false) {
    o.sampling = kSampling;
    all.push_back({o, exact, row_end});
  };
  using enum DecoderKind;
  constexpr Coupling couplings[] = {Coupling::none, Coupling::maximal, Coupling::gumbel};
  add({.kind = ar});
  add({.kind = jacobi, .window = 4});
  for (const Refill refill : {Refill::one_hot, Refill::uniform, Refill::left}) add({.kind = sjd, .window = 4, .refill = refill});
  add({.kind = sjd, .window = 1});
  for (const Coupling c : {Coupling::maximal, Coupling::gumbel}) add({.kind = sjd, .window = 4, .coupling = c});
  for (const Coupling c : couplings) add({.kind = sjd2, .window = 4, .steps = 2, .coupling = c});
  add({.kind = sjd2, .window = 4, .steps = 2, .refine = false});
  add({.kind = sjd2, .window = 4, .steps = 2, .coupling = Coupling::maximal, .denoise_with = DenoiseWith::expected});
  for (const NoisyKv kv : {NoisyKv::refeed, NoisyKv::keep})
    add({.kind = sjd2, .window = 4, .steps = 2, .mode = Sjd2Mode::published, .noisy_kv = kv}, /*exact=*/false);
  add({.kind = sjd, .window = 4, .relaxed_neighbours = 1, .relaxed_delta = 0.3}, false);
  add({.kind = zipar, .window = 1}, false);
  add({.kind = ar}, true, /*row_end=*/true);
  add({.kind = sjd, .window = 5, .coupling = Coupling::maximal}, true, true);
  add({.kind = sjd2, .window = 4, .steps = 2, .coupling = Coupling::maximal}, true, true);
  add({.kind = sjd2, .window = 5, .steps = 3, .noisy_kv = NoisyKv::keep}, true, true);  // a row end behind a noisy slot
  return all;
}

class Exactness : public ::testing::TestWithParam<Case> {};

TEST_P(Exactness, ChiSquareAgainstTheEnumeratedLaw) {
  const auto& [options, exact, row_end] = GetParam();
  const TinyModel& model = row_end ? with_row_ends() : tiny();
  const std::string name = label(options) + (row_end ? ", row ends" : "");
  double passes = 0;
  const Fit f = fit_of(model, [&](const Tensor& prompts, const Tensor& ids) {
    const Decoded d = decode(model.model(), prompts, ids, kSeed, options, &model.noise());
    passes += d.passes.to(at::kDouble).mean().item<double>() / kBatches;
    EXPECT_TRUE(d.codes.eq(model.layout.codebook).equal(model.layout.forced_codes().ge(0).expand_as(d.codes)));  // row ends
    return d.codes;
  });
  report(name, f, passes);
  EXPECT_EQ(lossy(options), !exact);
  if (!exact) {
    EXPECT_LT(f.p, kRejected);
    return;
  }
  EXPECT_GT(f.p, kExact);
  EXPECT_EQ(f.impossible, 0);
}

INSTANTIATE_TEST_SUITE_P(Decoders, Exactness, ::testing::ValuesIn(cases()), [](const auto& one) {
  std::string name = label(one.param.options) + (one.param.row_end ? " row ends" : "");
  std::replace_if(name.begin(), name.end(), [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); }, '_');
  return name;
});

// --- the test must reject wrong rules: SJD once more from the public pieces, with room for two known mistakes

enum class Plant { nothing, resample_from_p, verify_again_with_old_law };

// SJD in lock-step: `group` images commit as many tokens as the slowest of them. A draft that was accepted but not committed
// has become ~ p and must be credited with p from then on.
Tensor lock_step_sjd(const TinyModel& tiny, const Tensor& prompts, const Tensor& ids, int64_t group, Plant plant) {
  const NoGrad no_grad;
  const int64_t N = tiny.length();
  const DecoderOptions options{.kind = DecoderKind::sjd, .sampling = kSampling, .window = 4};
  DecodingSession session(tiny.model(), prompts, {.guidance = kSampling.guidance, .window = options.window});
  const DecoderRandomness randomness(ids, kSeed, N, prompts.options());
  Window window(tiny.model(), options, nullptr, {0.0}, randomness, prompts.size(0));
  const Rule rule(tiny.model(), options, randomness);
  for (int64_t pass = 0; !session.finished(); ++pass) {
    const int64_t W = session.window();
    const Tensor start = session.start(), slot = at::arange(W + 1, at::kLong), draft_slot = slot.narrow(0, 0, W);
    const Tensor position = (start.unsqueeze(1) + slot).clamp_max(N - 1), u = randomness.of_pass(pass);
    const Tensor p = rule.laws(session.pass(window.inputs(W), {}), position);
    const Tensor x = window.draft.narrow(1, 0, W), q = window.law.narrow(1, 0, W), here = p.narrow(1, 0, W);
    const auto of_draft = [&](const Tensor& law) { return law.gather(2, x.unsqueeze(2)).squeeze(2); };
    const Tensor kept = (u.gather(1, position).narrow(1, 0, W) * of_draft(q)).lt(of_draft(here));
    const Tensor accepted = leading(kept).unsqueeze(1);
    const Tensor stands = draft_slot.lt(accepted).unsqueeze(2), behind = draft_slot.gt(accepted).unsqueeze(2);
    const Tensor weights = plant == Plant::resample_from_p ? here : at::where(behind, here, residual(here, q));
    const Tensor drawn = draw(at::cat({weights, p.narrow(1, W, 1)}, 1), u.gather(1, position + N + 1));
    const Tensor y = at::where(slot < accepted, at::constant_pad_nd(x, {0, 1}), drawn);
    const Tensor decided = (accepted.squeeze(1) + 1).minimum(N - start);
    const Tensor count = decided.view({-1, group}).amin(1, true).expand({-1, group}).flatten();
    const int64_t most = session.commit(y, count, leading(kept));
    window.update(y.narrow(1, 0, W), plant == Plant::verify_again_with_old_law ? at::where(stands, q, here) : here);
    window.shift(count, session.start(), most);
  }
  return session.codes();
}

Fit fit_of_lock_step(const std::string& name, int64_t group, Plant plant) {
  const Fit f = fit_of(tiny(), [&](const Tensor& prompts, const Tensor& ids) {
    return lock_step_sjd(tiny(), prompts, ids, group, plant);
  });
  report(name, f, 0);
  return f;
}

TEST(PlantedErrors, TheRightRulePasses) {
  const Tensor prompts = tiny().prompts(256), ids = some_ids(256);
  const Decoded d = decode(tiny().model(), prompts, ids, kSeed, {.kind = DecoderKind::sjd, .sampling = kSampling, .window = 4});
  EXPECT_TRUE(lock_step_sjd(tiny(), prompts, ids, 1, Plant::nothing).equal(d.codes));  // it is the decoder's own rule
  for (const int64_t group : {1, 2})
    EXPECT_GT(fit_of_lock_step(fmt::format("sjd in lock-step of {}", group), group, Plant::nothing).p, kExact);
}
TEST(PlantedErrors, ResamplingFromTheLawInsteadOfTheResidualIsRejected) {
  EXPECT_LT(fit_of_lock_step("resampling from p (wrong)", 1, Plant::resample_from_p).p, kRejected);
}
TEST(PlantedErrors, VerifyingAgainWithTheOldLawIsRejected) {
  EXPECT_LT(fit_of_lock_step("lock-step of 2, old law (wrong)", 2, Plant::verify_again_with_old_law).p, kRejected);
}

}  // namespace
}  // namespace fewstep::decoding
