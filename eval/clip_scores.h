// "CLIP score" means five different numbers; each is called by who defined it.
#pragma once
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "eval/metric.h"
#include "src/tensor/fwd.h"
#include "src/text/clip_tokenizer.h"

namespace fewstep::eval {

struct ClipScoreKind {
  std::string_view name, meaning;
  std::string_view prefix;      // put in front of every caption
  text::ClipCleaning cleaning;  // of captions, as the tool's tokenizer does it
  // cosines float64 [N] -> the score of each sample whose mean is reported; `scale` is exp(logit_scale), about 100.
  Tensor (*per_sample)(const Tensor& cosines, double scale);
  bool clamp_mean;  // the mean, not the samples, is kept from being negative
};
//   hessel        2.5 max(cos, 0), "A photo depicts " + caption              Hessel et al. 2021, arXiv 2104.08718
//   torchmetrics  max(100 mean cos, 0), no prefix                            torchmetrics.multimodal.CLIPScore
//   taited        exp(logit_scale) cos, no prefix                            the clip-score package
//   gigagan       cos, "A photo depicts " + caption                          GigaGAN, DMD, DMD2
//   mlperf        100 cos, no prefix                                         MLPerf SDXL; SJD2's tables
std::span<const ClipScoreKind> clip_score_kinds();
const ClipScoreKind& find_clip_score(std::string_view name);  // ConfigError with the known names

// Mean over samples with its 95 % interval. NumericError for cosines that are not finite.
Value clip_score(const ClipScoreKind& kind, const Tensor& cosines, double scale);

}  // namespace fewstep::eval
