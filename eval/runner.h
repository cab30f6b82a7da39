// Runs one evaluation: makes every image set once, feeds each to every metric, writes results.json and report.html.
#pragma once
#include "eval/eval_config.h"
#include "eval/image_sets.h"
#include "eval/latency.h"
#include "eval/metrics.h"
#include "eval/results.h"

namespace fewstep::eval {

std::filesystem::path output_folder(const EvalConfig& config);
Results run_evaluation(EvalConfig& config, at::Device device);

// The pieces, for tests and tools.
// Feeds `set` in batches to every metric of `names` (distribution metrics only when the set follows the distribution).
// `features` takes the judge's, float [N, D], when there is one.
std::map<std::string, Value> measure(const ImageSet& set, bool distribution, const std::vector<std::string>& names,
                                     const MetricContext& context, Tensor* features = nullptr);
// Real-against-real values become the floors of the other rows' distances, precision and recall, where N is equal.
void attach_floors(std::vector<ResultRow>& rows, const ResultRow& real);
// Marks every number of an encoder that has not shown that it can rank images.
void mark_unqualified(std::vector<ResultRow>& rows, const EncoderIdentity& judge);
// Markdown: one row per image set, N, value and interval; then, as a list, what only the samples have (decoding,
// tokens).
std::string results_table(const Results& results);

}  // namespace fewstep::eval
