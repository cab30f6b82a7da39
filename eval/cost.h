// What an image costs and what its model cost: evaluations against a teacher's, arithmetic of an image, arithmetic of the training.
#pragma once
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "eval/image_sets.h"
#include "eval/report.h"

namespace fewstep::eval {

inline constexpr std::string_view kCost = "cost";  // in `metrics:`, of sets that a model made
inline bool is_cost_metric(std::string_view name) { return name == kCost; }

// FLOPs of drawing one image, the networks that are called again and again only: text encoder and decoder to pixels run once.
//   diffusion       evaluations (guidance counts twice) x those of a forward pass
//   autoregressive  2 a weight and position (scores of attention left out), twice with guidance. A window's positions are counted
//                   in every pass, also those of a window that the image's end has cut short
// 0: not known for this pipeline.
double image_flops(const pipelines::Pipeline& pipeline, const ImageSet& set, const pipelines::GenerateOptions& options);
// FLOPs that a run's metrics.jsonl has up to its end, or up to the step of a checkpoint folder (<run>/checkpoints/step-...): the
// trainers' own arithmetic, forward and backward. DataError: no such file, or a trainer that does not count.
double training_flops(const std::filesystem::path& run);

// nfe_compression (baseline_nfe / own evaluations), gflop_per_image, training_tflop (sum over `training_runs`); what is not known
// is left out.
std::map<std::string, Value> cost_values(const EvalConfig& config, const pipelines::Pipeline& pipeline, const ImageSet& set,
                                         const pipelines::GenerateOptions& options);

// Rows of a table: evaluations, the metrics above, latencies by batch, speed-up over the teacher. No table when no row has any.
ReportSection cost_section(const std::vector<ResultRow>& rows);
// The distances in a discriminator's own features, by themselves.
ReportSection in_loop_section(const std::vector<ResultRow>& rows);

}  // namespace fewstep::eval
