// Runs one evaluation: makes every image set once, feeds each to every metric, writes results.json and report.html.
#pragma once
#include "eval/eval_config.h"
#include "eval/image_sets.h"
#include "eval/metrics.h"
#include "eval/results.h"

namespace fewstep::eval {

std::filesystem::path output_folder(const EvalConfig& config);
Results run_evaluation(EvalConfig& config, at::Device device);

// The pieces, for tests and tools.
// Feeds `set` in batches to every metric of `names` (distribution metrics only when the set follows the distribution).
std::map<std::string, Value> measure(const ImageSet& set, bool distribution, const std::vector<std::string>& names,
                                     const MetricContext& context);
// Real-against-real values become the floors of the other rows' distances, precision and recall, where N is equal.
void attach_floors(std::vector<ResultRow>& rows, const ResultRow& real);
// Marks every number of an encoder that has not shown that it can rank images.
void mark_unqualified(std::vector<ResultRow>& rows, const EncoderIdentity& judge);
Latency measure_latency(pipelines::Pipeline& pipeline, const std::vector<std::string>& prompts,
                        const EvalConfig& config);
// p in [0, 1], nearest rank on the sorted values.
double percentile(std::vector<double> values, double p);

// Markdown: one row per image set, N, value and interval.
std::string results_table(const Results& results);

}  // namespace fewstep::eval
