// What a protocol's run leaves to be read: results.md and report.html.
#pragma once
#include <filesystem>
#include <string>
#include <vector>

#include "eval/image_source.h"
#include "eval/prompts.h"
#include "eval/protocols.h"
#include "eval/results.h"

namespace fewstep::eval {

struct ProtocolCounts {
  std::string side;  // "real images", "samples"
  int64_t images = 0, constant = 0, grey = 0, unreadable = 0;
  std::vector<std::string> errors;  // path: reason
};
struct ProtocolReport {
  const Results& results;
  const std::vector<Prompt>& prompts;
  const ImageSource& samples;
  std::vector<ProtocolCounts> counts;
  int64_t truncated_captions = 0;
  Tensor cosines = {};         // float64 [N] of images and captions; undefined without CLIP
  Tensor places = {};          // int64 [N]: their prompts
  std::string clip_name = {};  // of the metric that worst and best are ranked by
};
// One line a metric, with N, interval and note.
std::string protocol_markdown(const ProtocolReport& report);
void write_protocol_report(const std::filesystem::path& folder, const ProtocolReport& report, bool html);

}  // namespace fewstep::eval
