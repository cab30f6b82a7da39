#include "src/decoding/decoders.h"

#include "src/base/error.h"
#include "src/tensor/ops.h"

namespace fewstep::decoding {
namespace {

constexpr config::Choice kKinds[] = {{"ar", 0}, {"jacobi", 1}, {"sjd", 2}, {"sjd2", 3}, {"zipar", 4}};
constexpr config::Choice kCouplings[] = {{"none", 0}, {"maximal", 1}, {"gumbel", 2}};
constexpr config::Choice kRefills[] = {{"one_hot", 0}, {"uniform", 1}, {"left", 2}};
constexpr config::Choice kModes[] = {{"gated", 0}, {"published", 1}};
constexpr config::Choice kNoisyKv[] = {{"refeed", 0}, {"keep", 1}};
constexpr config::Choice kDenoise[] = {{"sampled", 0}, {"expected", 1}};

Decoded decode_batch(const ImageModel& model, const Tensor& prompts, const Tensor& ids, uint64_t seed, const DecoderOptions& options,
                     const models::EmbeddingNoise* noise, const PassObserver& observe) {
  switch (options.kind) {
    case DecoderKind::ar: return decode_autoregressive(model, prompts, ids, seed, options);
    case DecoderKind::zipar: return decode_row_parallel(model, prompts, ids, seed, options);
    case DecoderKind::sjd2: return decode_window(model, prompts, ids, seed, options, noise, observe);
    default: return decode_window(model, prompts, ids, seed, options, nullptr, observe);
  }
}

Decoded concatenate(const std::vector<Decoded>& parts) {
  Decoded all = parts[0];
  std::vector<Tensor> codes, passes, committed_at, entropy;
  all.seconds = all.forward_seconds = 0, all.batch_passes = 0;
  all.tried_by_age = at::zeros_like(all.tried_by_age), all.kept_by_age = at::zeros_like(all.kept_by_age);
  for (const Decoded& d : parts) {
    codes.push_back(d.codes), passes.push_back(d.passes), committed_at.push_back(d.committed_at), entropy.push_back(d.entropy);
    all.tried_by_age += d.tried_by_age, all.kept_by_age += d.kept_by_age;
    all.batch_passes += d.batch_passes, all.seconds += d.seconds, all.forward_seconds += d.forward_seconds;
  }
  all.codes = at::cat(codes), all.passes = at::cat(passes), all.committed_at = at::cat(committed_at), all.entropy = at::cat(entropy);
  return all;
}

}  // namespace

void describe(config::Visitor& v, DecoderOptions& c) {
  v.field("decoder", c.kind, "ar; jacobi, sjd, sjd2: windows of drafts; zipar: rows in parallel, lossy", kKinds);
  v.field("window", c.window, "drafts verified in a pass; zipar: tokens the row above is ahead", config::kAtLeastOne);
  v.field("steps", c.steps, "sjd2: noise levels between pure noise and clean", config::kAtLeastOne);
  v.field("mode", c.mode, "sjd2: gated is exact; published verifies across noisy slots as the paper does", kModes);
  v.field("coupling", c.coupling, "how undecided slots are drawn again: afresh, maximal coupling, fixed Gumbel noise", kCouplings);
  v.field("refill", c.refill, "sjd: draft of a new slot and the law it is credited with", kRefills);
  v.field("refine", c.refine, "sjd2: clean slots are drawn again in every pass until they are verified");
  v.field("noisy_kv", c.noisy_kv, "sjd2 published: keys of tokens committed while noisy are made again, or kept", kNoisyKv);
  v.field("denoise_with", c.denoise_with, "sjd2: embedding of the sampled code, or expected embedding, in the denoising step", kDenoise);
  v.field("relaxed_neighbours", c.relaxed_neighbours, "sjd: LANTERN's relaxed acceptance over so many nearest codes, lossy; 0: off",
          config::kNonNegative);
  v.field("relaxed_delta", c.relaxed_delta, "most probability the neighbours may add", config::kUnit);
  v.field("deterministic", c.deterministic, "images are decoded one at a time: results do not depend on the batch, bit for bit");
}

std::string_view name_of(DecoderKind kind) { return kKinds[static_cast<size_t>(kind)].name; }

// Jacobi is exact without coupling, too: it commits the new draw y ~ p whatever the draft was, and whether a slot is reached
// depends on the slots left of it only.
bool lossy(const DecoderOptions& o) {
  if (o.kind == DecoderKind::zipar) return true;
  if (o.kind == DecoderKind::sjd2) return o.mode == Sjd2Mode::published;
  return o.kind == DecoderKind::sjd && o.relaxed_neighbours > 0;
}

void check(const DecoderOptions& o, int64_t length) {
  if (o.kind == DecoderKind::ar) return;
  if (o.window < 1) fail<ConfigError>("window: {} must be at least 1", o.window);
  if (o.window > length)
    fail<ConfigError>("window: {} is longer than the {} tokens of an image; choose 1 ... {}", o.window, length, length);
  if (o.kind == DecoderKind::sjd2 && o.steps < 1) fail<ConfigError>("steps: {} must be at least 1 (decoder=sjd works without noise)", o.steps);
  if (o.kind == DecoderKind::jacobi && o.coupling == Coupling::maximal)
    fail<ConfigError>("coupling: jacobi keeps a draft when it is drawn again: none or gumbel (maximal coupling is that of sjd)");
  if (!o.refine && o.kind != DecoderKind::sjd2)
    fail<ConfigError>("refine: only sjd2 can leave clean slots as they are (its drafts come from denoising)");
  if (o.relaxed_neighbours > 0 && (o.kind != DecoderKind::sjd || o.coupling == Coupling::gumbel))
    fail<ConfigError>("relaxed_neighbours: relaxed acceptance belongs to decoder=sjd with coupling none or maximal");
}

Decoded decode(const ImageModel& model, const Tensor& prompts, const Tensor& ids, uint64_t seed, const DecoderOptions& options,
               const models::EmbeddingNoise* noise, const PassObserver& observe) {
  check(options, model.length());
  if (options.kind == DecoderKind::sjd2 && noise == nullptr) fail<Error>("sjd2 needs the statistics of the noise on embeddings");
  const auto finite = [&](Decoded d) {  // the entropy of a law that is not finite is not either
    if (!at::isfinite(d.entropy).all().item<bool>())
      fail<NumericError>("decoder {}: the network's logits are not finite; are its weights whole?", name_of(options.kind));
    return d;
  };
  if (!options.deterministic) return finite(decode_batch(model, prompts, ids, seed, options, noise, observe));
  std::vector<Decoded> parts;
  for (int64_t b = 0; b < prompts.size(0); ++b)
    parts.push_back(decode_batch(model, prompts.narrow(0, b, 1), ids.narrow(0, b, 1), seed, options, noise, observe));
  return finite(concatenate(parts));
}

}  // namespace fewstep::decoding
