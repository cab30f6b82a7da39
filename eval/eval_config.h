// One evaluation, as the YAML file has it. Its root key `metrics:` tells it from training and experiment files.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "datasets/dataset.h"
#include "eval/teacher_set.h"
#include "src/config/visitor.h"
#include "src/dist/world.h"
#include "src/pipelines/pipeline.h"

namespace fewstep::eval {

struct LatencyConfig {
  int64_t runs = 0;  // 0: not measured
  int64_t warmup = 3;
  int64_t batch_size = 1;
  std::vector<int64_t> batch_sizes = {};  // several in place of it, each a metric latency_ms[batch=N]
};
void describe(config::Visitor& v, LatencyConfig& c);

// Samples of the same model once more with other options, in a row of their own: a guidance sweep, a dose-response.
struct EvalVariant {
  std::string label;
  config::Overrides generate;  // keys of `generate` over the evaluation's own
  int64_t num_samples = 0;     // the first so many captions; 0: all of them
};
void describe(config::Visitor& v, EvalVariant& c);

struct EvalConfig {
  std::string name;
  std::string out;  // empty: runs/<name>
  int64_t seed = 0;
  int64_t threads = 0;  // 0: all cores
  dist::DeviceKind device = dist::DeviceKind::automatic;
  std::string model;      // run or model folder that makes the samples
  std::string images;     // or a folder of finished images, as `fewstep sample` leaves it
  std::string tokenizer;  // run or model folder with a VQModel; empty: the model's own
  std::unique_ptr<DatasetConfig> data;
  std::string judge, judge_name = "judge";
  std::string second_judge, second_judge_name = "tower";
  std::string clip, clip_name = "clip";
  std::string perceptual, perceptual_name = "perceptual";  // empty: the judge
  std::string patch_judge, patch_judge_name = "patch";     // an encoder of cut-outs
  int64_t patch_side = 0;                                  // 0: what that encoder reads
  std::string in_loop;                                     // a discriminator's features, printed apart
  TeacherConfig teacher;
  int64_t baseline_nfe = 0;  // evaluations an image that nfe_compression is against; 0: none
  Split split = Split::test;  // of `data`: what is compared with; heldout where a setting is chosen
  int64_t num_samples = 2000, reference_samples = 5000, compositional_samples = 500;
  std::vector<std::string> sets = {"real", "samples"};
  std::vector<std::string> metrics;  // metrics.h of images, token_metrics.h of tokens
  std::string prompts_file;          // empty: captions of the test split
  pipelines::GenerateOptions generate;
  std::vector<EvalVariant> variants;
  LatencyConfig latency;
  bool qualify = false;
  std::string qualified_by;  // results.json of a run that qualified the same weights
  std::string paired_with;   // folder of another evaluation whose samples have the same captions and seed
  bool report = true;
  std::string title;
  int64_t report_prompts = 8;
  std::vector<std::string> training_runs;  // of the model: curves in the report, and their sum is training_tflop
};
void describe(config::Visitor& v, EvalConfig& c);

struct ImageSetKind {
  std::string_view name, label;
  bool distribution;  // follows the caption distribution of the test split: may be compared with it
};
std::span<const ImageSetKind> image_set_kinds();
// `generate` with the variant's keys. ConfigError naming the variant and the key.
pipelines::GenerateOptions variant_options(const EvalConfig& config, const EvalVariant& variant);

}  // namespace fewstep::eval
