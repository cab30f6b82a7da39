// Numbers of the tokens an autoregressive model drew: how they were drawn, how likely they are, and how they differ
// from those of another run on the same captions.
#pragma once
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "eval/eval_config.h"
#include "eval/frechet.h"
#include "eval/image_sets.h"
#include "eval/sample_record.h"
#include "src/pipelines/autoregressive_pipeline.h"

namespace fewstep::eval {

// Entries of `metrics:` that are measured on tokens, of the set `samples` only.
struct TokenMetricKind {
  std::string_view name, meaning;
};
std::span<const TokenMetricKind> token_metric_kinds();
bool is_token_metric(std::string_view name);

// step_compression (S, mean over images of tokens / passes), [ratio of means], [foreground], [without structural] where
// there are such tokens; passes, ms_per_pass, tokens_per_second, decoder_overhead (share of the time outside the
// transformer).
std::map<std::string, Value> decoding_values(const decoding::DecodingStatistics& statistics, bool lossy);

// The token metrics of `metrics:`.
//   token_nll: mean over images of the mean negative log-likelihood of a token, in nats, under the model's
//   autoregressive law with
//     the guidance and temperature of the samples. token_outside: share of tokens that top-k or top-p exclude.
//   draft_stability: draft_stability.h, on up to 64 samples drawn again.
//   noise_snr[min|median|max]: over the dimensions of the embedding table, what a code still shows at half noise (t =
//   1/2):
//     alpha deviation_of_image_codes / (sigma deviation_of_noise). About 1 in all of them when noise is scaled per
//     dimension.
// And against `baseline` (may be null), marked when another model drew it:
//   token_nll_difference: relative to the baseline's mean, its tokens under this run's model; paired by image.
//   token_auc: token_classifier.h.   FD_difference: frechet_difference(); needs `reference` and features on both sides.
struct TokenContext {
  const pipelines::AutoregressivePipeline& pipeline;
  const EvalConfig& config;
  const ImageSet& samples;
  const SampleRecord& own;
  const SampleRecord* baseline = nullptr;
  const FrechetReference* reference = nullptr;
};
std::map<std::string, Value> token_values(const TokenContext& context);

// (mean a - mean b) / mean b with the interval of a ratio of paired means.
Value relative_difference(const std::vector<double>& a, const std::vector<double>& b);
// Relative difference of distances of two feature sets [n, D] to `reference`, row i of both paired.
Value feature_difference(const FrechetReference& reference, const Tensor& own, const Tensor& baseline);

}  // namespace fewstep::eval
