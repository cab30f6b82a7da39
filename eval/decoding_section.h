// The report's section on how tokens were drawn: passes, step compression, latency against plain autoregressive
// decoding, what the window looks like while it is denoised.
#pragma once
#include <limits>
#include <string>
#include <vector>

#include "eval/image_sets.h"
#include "eval/report.h"
#include "src/pipelines/autoregressive_pipeline.h"

namespace fewstep::eval {

// The same captions with the same seed under the decoder `ar` and under the one evaluated.
struct SideBySide {
  std::vector<std::string> prompts;
  Tensor ar, own;  // uint8 [P, C, H, W]
  // Share of equal tokens where both took the same Gumbel noise and the decoder is exact: one, up to ties in rounding.
  double same_tokens = std::numeric_limits<double>::quiet_NaN();
};
struct DecodingEvidence {
  decoding::DecoderOptions decoder;
  std::string options = {};  // that differ from the defaults
  decoding::DecodingStatistics statistics;
  int64_t tokens = 0, batch_size = 0;  // of an image; decoded together
  double inner = 0, outer = 0;         // seconds an image in such batches: tokens; with the images made of them
  int64_t peak_memory = 0;
  std::vector<std::string> strip_prompts = {};
  std::vector<pipelines::Strip> strips = {};
  SideBySide beside = {};
};
// Decodes a few more images, of indices that no set uses.
DecodingEvidence gather_decoding(const EvalConfig& config, ImageSets& sets);

ReportSection decoding_section(const DecodingEvidence& evidence, const ResultRow& row);
// "Step compression" and "Latency against AR", as far as the row has them.
std::vector<ReportHeadline> decoding_headlines(const ResultRow& row);

}  // namespace fewstep::eval
