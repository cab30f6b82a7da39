#include "eval/clip_scores.h"

#include "eval/accuracy.h"
#include "src/base/error.h"
#include "src/base/table.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep::eval {
namespace {

constexpr std::string_view kPhoto = "A photo depicts ";
using text::ClipCleaning;

constexpr ClipScoreKind kKinds[] = {
    {"hessel", "2.5 max(cos, 0), captions after 'A photo depicts'", kPhoto, ClipCleaning::open_clip,
     [](const Tensor& c, double) { return 2.5 * c.clamp_min(0); }, false},
    {"torchmetrics", "max(100 mean cos, 0)", "", ClipCleaning::huggingface,
     [](const Tensor& c, double) { return 100 * c; }, true},
    {"taited", "exp(logit_scale) cos, as the clip-score package", "", ClipCleaning::open_clip,
     [](const Tensor& c, double scale) { return scale * c; }, false},
    {"gigagan", "cos, captions after 'A photo depicts': GigaGAN, DMD2", kPhoto, ClipCleaning::open_clip,
     [](const Tensor& c, double) { return c; }, false},
    {"mlperf", "100 cos", "", ClipCleaning::open_clip, [](const Tensor& c, double) { return 100 * c; }, false},
};

}  // namespace

std::span<const ClipScoreKind> clip_score_kinds() { return kKinds; }
const ClipScoreKind& find_clip_score(std::string_view name) {
  return find_entry(clip_score_kinds(), name, "CLIP score");
}

Value clip_score(const ClipScoreKind& kind, const Tensor& cosines, double scale) {
  const NoGrad no_grad;
  const Tensor c = cosines.to(at::kCPU, at::kDouble).contiguous();
  if (c.numel() == 0) fail<ConfigError>("CLIP score: no pair of image and caption");
  if (!at::isfinite(c).all().item<bool>()) fail<NumericError>("CLIP score: a cosine is not finite");
  Value value = mean_with_interval(kind.per_sample(c, scale));
  if (kind.clamp_mean) value.value = std::max(value.value, 0.0);
  return value;
}

}  // namespace fewstep::eval
