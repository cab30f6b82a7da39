// One run of a protocol while it goes on: what its parts (choosing, drawing, looking, reporting) hand to each other.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "eval/protocol_metrics.h"
#include "eval/protocol_report.h"
#include "eval/protocol_runner.h"

namespace fewstep::eval {

struct ProtocolRun {
  ProtocolConfig& config;
  dist::World& world;
  Protocol protocol;
  std::vector<Prompt> prompts = {};
  std::string label = {};                                                     // protocol_label
  std::shared_ptr<const ImageSource> real = {}, samples = {}, baseline = {};  // as they are; null where there is none
  std::vector<ProtocolCounts> counts = {};
  int64_t truncated = 0;
  Tensor cosines = {}, places = {};  // float64 [N] of images and their captions; int64 [N] of prompts
  std::string clip_name = {};
  Results results = {};
  ResultRow row = {};
};

using ProtocolMetrics = std::vector<const ProtocolMetric*>;
// Wanted metrics of a view; none where its encoder is not given, unless one of them was asked for by name
// (ConfigError).
ProtocolMetrics wanted_metrics(const ProtocolRun& run, const ViewKind& view);
// Loads the view's network and lets it go: what is wrong with it is said before samples are drawn for hours.
void probe(const ProtocolRun& run, const ViewKind& view);
// Loads the view's network, has it look at both sides (or at images and captions), adds the metrics to the row.
void look(ProtocolRun& run, const ViewKind& view, const ProtocolMetrics& metrics);

}  // namespace fewstep::eval
