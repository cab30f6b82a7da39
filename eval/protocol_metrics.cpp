#include "eval/protocol_metrics.h"

#include <algorithm>

#include "eval/accuracy.h"
#include "eval/clip_scores.h"
#include "eval/frechet.h"
#include "eval/inception_score.h"
#include "eval/kernel_distance.h"
#include "eval/prdc.h"
#include "src/base/error.h"
#include "src/tensor/ops.h"

namespace fewstep::eval {
namespace {

using Values = std::map<std::string, Value>;
constexpr int64_t kSubsets = 100, kSubsetSize = 1000;  // KID as torch-fidelity reports it

Values frechet(const ViewInputs& in) {
  const FrechetReference reference = frechet_reference(*in.real);
  Value value = frechet_with_interval(reference, in.samples->groups);
  if (value.n < reference.dim())
    value.note = fmt::format("N = {} below D = {}: dominated by bias", value.n, reference.dim());
  Values out = {{metric_name("FD", in.identity), value}};
  if (in.baseline)
    out[metric_name("FD_difference", in.identity)] =
        frechet_difference(reference, in.samples->groups, in.baseline->groups);
  return out;
}

// Kept apart from the 2,048-feature distance by its name.
Values spatial(const ViewInputs& in) {
  const FrechetReference reference = frechet_reference(*in.real);
  return {{metric_name("sFD", in.identity), frechet_with_interval(reference, in.samples->groups)}};
}

Values patch(const ViewInputs& in) {
  const FrechetReference reference = frechet_reference(*in.real);
  return {{metric_name("patch_FD", in.identity, fmt::format("crop={}", kPatchSide)),
           frechet_with_interval(reference, in.samples->groups)}};
}

Values infinity(const ViewInputs& in) {
  return {{metric_name("FD", in.identity, "N=infinity"),
           frechet_infinity(frechet_reference(*in.real), in.samples->features)}};
}

Values kernel(const ViewInputs& in) {
  const Tensor &a = in.real->features, &b = in.samples->features;
  const int64_t n = b.size(0);
  Values out = {{metric_name("KD", in.identity), {.value = kernel_distance(a, b), .n = n}}};
  if (std::min(a.size(0), n) >= kSubsetSize) {
    const MeanStd kid = kid_subsets(a, b, kSubsets, kSubsetSize);
    out[metric_name("KD", in.identity, fmt::format("{}x{}", kSubsets, kSubsetSize))] = {
        .value = kid.mean, .n = n, .note = fmt::format("std over subsets {:.3g}", kid.std)};
  }
  return out;
}

Values score_of_classes(const ViewInputs& in) {
  if (!in.samples->logits.defined()) return {};
  constexpr int64_t kSplits = 10;
  if (in.samples->logits.size(0) < kSplits) return {};
  const MeanStd score = inception_score(in.samples->logits, kSplits);
  return {{metric_name("IS", in.identity, fmt::format("splits={}", kSplits)),
           {.value = score.mean,
            .n = in.samples->logits.size(0),
            .note = fmt::format("std over splits {:.3g}", score.std)}}};
}

Values kernel_of_clip(const ViewInputs& in) {
  return {{metric_name("MMD", in.identity),
           {.value = cmmd(in.real->features, in.samples->features), .n = in.samples->features.size(0)}}};
}

Values neighbours(const ViewInputs& in) {
  // Equal numbers on both sides: the balls' radii, and with them recall, depend on the density of each set.
  const int64_t n = std::min(in.real->features.size(0), in.samples->features.size(0));
  const Tensor real = in.real->features.slice(0, 0, n), fake = in.samples->features.slice(0, 0, n);
  const Prdc p = prdc(real, fake);
  const auto counted = [n](double value) {
    return share(static_cast<int64_t>(std::lround(value * static_cast<double>(n))), n);
  };
  return {{metric_name("precision", in.identity, "k=3"), counted(p.precision)},
          {metric_name("recall", in.identity, "k=3"), counted(p.recall)},
          {metric_name("density", in.identity, "k=3"), {.value = p.density, .n = n}},
          {metric_name("coverage", in.identity, "k=3"), counted(p.coverage)}};
}

Values against_captions(const ViewInputs& in) {
  const ClipScoreKind& kind = find_clip_score(in.protocol.clip_definition);
  Value score = clip_score(kind, in.cosines, in.logit_scale);
  if (score.n > 1) score.floor = clip_score(kind, in.shuffled_cosines, in.logit_scale).value;
  Values out = {{metric_name("CLIPScore", in.identity, kind.name), score}};
  if (in.baseline_cosines.defined()) {
    // Same captions: the difference of each pair, whose interval knows what they share.
    const Tensor d = kind.per_sample(in.cosines, in.logit_scale) - kind.per_sample(in.baseline_cosines, in.logit_scale);
    Value value = mean_with_interval(d);
    const auto wins = in.cosines.gt(in.baseline_cosines).sum().item<int64_t>();
    value.note = fmt::format("higher for {} of {} prompts", wins, d.numel());
    out[metric_name("CLIPScore_difference", in.identity, kind.name)] = value;
  }
  return out;
}

}  // namespace

std::span<const ViewKind> view_kinds() {
  static constexpr ViewKind table[] = {{EncoderView::inception, "inception", false, false},
                                       {EncoderView::inception_spatial, "inception", false, false},
                                       {EncoderView::inception_patch, "inception", false, true},
                                       {EncoderView::clip, "clip", true, false},
                                       {EncoderView::cmmd, "cmmd", false, false},
                                       {EncoderView::dinov2, "dinov2", false, false},
                                       {EncoderView::vgg, "vgg", false, false}};
  return table;
}

std::span<const ProtocolMetric> protocol_metrics() {
  static constexpr ProtocolMetric table[] = {
      {"fid", EncoderView::inception, true, frechet},
      {"fid_infinity", EncoderView::inception, true, infinity},
      {"kid", EncoderView::inception, false, kernel},
      {"inception_score", EncoderView::inception, true, score_of_classes},
      {"sfid", EncoderView::inception_spatial, false, spatial},
      {"patch_fid", EncoderView::inception_patch, false, patch},
      {"clip_score", EncoderView::clip, true, against_captions},
      {"cmmd", EncoderView::cmmd, false, kernel_of_clip},
      {"fd_dinov2", EncoderView::dinov2, false, frechet},
      {"prdc", EncoderView::vgg, false, neighbours},
  };
  return table;
}

}  // namespace fewstep::eval
