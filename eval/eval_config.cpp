#include "eval/eval_config.h"

#include <algorithm>

#include "eval/cost.h"
#include "eval/heldout_loss.h"
#include "eval/metrics.h"
#include "eval/token_metrics.h"
#include "src/base/error.h"
#include "src/base/table.h"
#include "src/config/config.h"
#include "src/tensor/ops.h"

namespace fewstep::eval {
namespace {

// Names of a list that must be in a table: every unknown one is reported with the known ones.
void check_names(config::Visitor& v, std::string_view key, const std::vector<std::string>& given,
                 const std::vector<std::string>& known) {
  for (const std::string& name : given)
    v.check(std::find(known.begin(), known.end(), name) != known.end(), key, not_one_of(name, known));
}

bool has(const std::vector<std::string>& list, std::string_view name) {
  return std::find(list.begin(), list.end(), name) != list.end();
}

void describe_measurement(config::Visitor& v, EvalConfig& c) {
  v.field(
      "sets", c.sets,
      "what is measured: real, reconstructions, samples, compositional, gaussian, independent_tokens, half_resolution; "
      "model: what is measured without images (heldout_loss)");
  check_names(v, "sets", c.sets, names_of(image_set_kinds()));
  v.require("metrics");
  v.field(
      "metrics", c.metrics,
      "what is measured on each: fd, kd, prdc, class_accuracy, accuracy_by_class, attribute_accuracy, clip_score, "
      "band_power, cut_rate, nearest_training, heldout_loss; for students patch_fd, fd_teacher, diversity, in_loop_fd, cost; on "
      "reconstructions: psnr, ssim, perceptual, rfd; and on the tokens of samples: token_nll, draft_stability, noise_snr");
  std::vector<std::string> known = names_of(metric_kinds());
  for (const TokenMetricKind& kind : token_metric_kinds()) known.emplace_back(kind.name);
  known.emplace_back(kHeldoutLoss);
  known.emplace_back(kCost);
  check_names(v, "metrics", c.metrics, known);
}

void check_rules(config::Visitor& v, const EvalConfig& c) {
  v.check(c.model.empty() || c.images.empty(), "images", "give either 'model' or 'images', not both");
  v.check(!has(c.sets, "samples") || !c.model.empty() || !c.images.empty(), "sets",
          "'samples' needs 'model' or 'images'");
  v.check(!has(c.sets, "compositional") || !c.model.empty(), "sets", "'compositional' needs 'model'");
  v.check(!c.qualify || !c.judge.empty(), "qualify", "needs 'judge'");
  const bool tokens = std::any_of(c.metrics.begin(), c.metrics.end(), is_token_metric);
  const bool drawn = has(c.sets, "samples") && !c.model.empty();
  v.check(c.variants.empty() || !c.model.empty(), "variants", "needs 'model'");
  v.check(!std::any_of(c.metrics.begin(), c.metrics.end(), is_model_metric) ||
              (!c.model.empty() && (drawn || has(c.sets, "model"))),
          "metrics", "heldout_loss needs 'model', and 'samples' or 'model' among 'sets'");
  v.check(!has(c.sets, "model") || !c.model.empty(), "sets", "'model' needs the key 'model'");
  v.check(!tokens || drawn, "metrics", "token metrics need 'model' and 'samples' among 'sets'");
  v.check(!has(c.metrics, "cost") || drawn, "metrics", "cost needs 'model' and 'samples' among 'sets'");
  v.check(!has(c.metrics, "patch_fd") || !c.patch_judge.empty(), "patch_judge", "metric patch_fd needs 'patch_judge': an encoder of cut-outs");
  v.check(!has(c.metrics, "fd_teacher") || c.teacher.on(), "teacher", "metric fd_teacher needs 'teacher.model'");
  v.check(!has(c.metrics, "fd_teacher") || c.prompts_file.empty(), "prompts_file",
          "fd_teacher is of the captions of 'data': leave one of them out");
  v.check(!has(c.metrics, "in_loop_fd") || !c.in_loop.empty(), "in_loop", "metric in_loop_fd needs 'in_loop': the features that the discriminator read");
  v.check(c.paired_with.empty() || drawn, "paired_with", "needs 'model' and 'samples' among 'sets'");
  const auto decoder = c.generate.decoder.kind;
  v.check(!has(c.metrics, "draft_stability") ||
              (decoder != decoding::DecoderKind::ar && decoder != decoding::DecoderKind::zipar),
          "metrics", fmt::format("draft_stability: the decoder '{}' keeps no drafts", decoding::name_of(decoder)));
}

}  // namespace

std::span<const ImageSetKind> image_set_kinds() {
  static constexpr ImageSetKind table[] = {
      {"real", "real test images", true},
      {"reconstructions", "reconstructions", true},
      {"samples", "samples", true},
      {"compositional", "samples, held-out combinations", false},
      {"gaussian", "class-conditional pixel Gaussian", true},
      {"independent_tokens", "independent tokens", true},
      {"half_resolution", "real, half resolution and back", true},
      {"model", "model", false},
  };
  return table;
}

void describe(config::Visitor& v, EvalVariant& c) {
  v.require("label");
  v.field("label", c.label, "name of the row");
  v.field("generate", c.generate, "keys of `generate` that differ in this row");
  v.field("num_samples", c.num_samples, "the first so many captions only; 0: as many as the evaluation", config::kNonNegative);
}

void describe(config::Visitor& v, LatencyConfig& c) {
  v.field("runs", c.runs, "timed calls of the whole pipeline; 0: none", config::kNonNegative);
  v.field("warmup", c.warmup, "calls before them", config::kNonNegative);
  v.field("batch_size", c.batch_size, "images a call", config::kAtLeastOne);
  v.field("batch_sizes", c.batch_sizes,
          "several in place of batch_size: the first is the row's latency, each is a metric latency_ms[batch=N]", config::kAtLeastOne);
}

void describe(config::Visitor& v, EvalConfig& c) {
  static constexpr config::Choice kDevices[] = {{"auto", 0}, {"cpu", 1}, {"cuda", 2}};
  v.require("name");
  v.field("name", c.name, "name of the evaluation");
  v.field("out", c.out, "folder for results.json and report.html; empty: runs/<name>");
  v.field("seed", c.seed, "seed of every random draw", config::kNonNegative);
  v.field("threads", c.threads, "CPU threads; 0: all cores", config::kNonNegative);
  v.field("device", c.device, "where tensors live; auto: CUDA when this binary and machine have it", kDevices);
  v.field("model", c.model, "run or model folder that makes the samples");
  v.field("images", c.images, "or a folder of finished images with metadata.jsonl, as `fewstep sample` leaves it");
  v.field("tokenizer", c.tokenizer,
          "run or model folder with the VQ model or AutoencoderKL of the reconstructions; empty: the model's own");
  v.require("data");
  v.field("data", c.data, "real images: the test split is the reference, and the source of captions", dataset_kinds());
  v.field("judge", c.judge,
          "run or model folder of the encoder that distances, recall and class accuracy are measured with");
  v.field("judge_name", c.judge_name, "its name in metric names");
  v.field("second_judge", c.second_judge,
          "another encoder: distances, precision and recall are measured in its features as well");
  v.field("second_judge_name", c.second_judge_name, "its name in metric names");
  v.field("clip", c.clip, "run or model folder of the contrastive model of CLIPScore");
  v.field("clip_name", c.clip_name, "its name in metric names");
  v.field("perceptual", c.perceptual,
          "folder of VGG16 (LPIPS; its linear layers in lpips/), or run or model folder of an encoder, for the perceptual distance "
          "of reconstructions; empty: the judge");
  v.field("perceptual_name", c.perceptual_name, "its name in metric names");
  v.field("patch_judge", c.patch_judge, "run or model folder of the encoder of patch_fd, trained on cut-outs of the images");
  v.field("patch_judge_name", c.patch_judge_name, "its name in metric names");
  v.field("patch_side", c.patch_side, "pixels of a patch; 0: what that encoder reads", config::kNonNegative);
  v.field("in_loop", c.in_loop,
          "run or model folder of the features that the model's discriminator read: distances in them are printed apart, they judge "
          "nothing. Not one of the judges");
  v.field("teacher", c.teacher, "the model whose samples fd_teacher compares with, and that speed_up[teacher] is timed against");
  v.field("baseline_nfe", c.baseline_nfe,
          "cost: network evaluations an image of what is compared with (a teacher of 50 guided steps: 100); 0: none",
          config::kNonNegative);
  v.field("split", c.split, "split of `data` that is compared with; heldout where a setting is chosen", split_choices());
  v.field("num_samples", c.num_samples, "N of every set that is compared", config::Range{2.0});
  v.field("reference_samples", c.reference_samples, "real images distances are taken to; never among the sets",
          config::Range{2.0});
  v.field("compositional_samples", c.compositional_samples, "N of the held-out combinations", config::kAtLeastOne);
  describe_measurement(v, c);
  v.field("prompts_file", c.prompts_file, "text file, one prompt a line; empty: captions of the test split");
  v.field("generate", c.generate, "guidance, temperature, ...: as on the command line of `fewstep sample`");
  v.field("variants", c.variants, "samples once more with other options, a row each");
  v.field("latency", c.latency, "latency of the pipeline");
  v.field("qualify", c.qualify, "test first whether the judge is fit for Frechet distance");
  v.field("qualified_by", c.qualified_by, "results.json of a run that qualified the same weights");
  v.field(
      "paired_with", c.paired_with,
      "folder of another evaluation with the same captions and seed: relative differences of its samples to these, and "
      "whether a classifier tells their tokens apart");
  v.field("report", c.report, "write report.html");
  v.field("title", c.title, "of the report; empty: the name");
  v.field("report_prompts", c.report_prompts,
          "prompts shown with eight samples each; decoders with a window beside plain autoregressive decoding",
          config::kNonNegative);
  v.field("training_runs", c.training_runs,
          "runs, or checkpoints of runs, that made the model: their loss curves are shown, `cost` adds up what they took");
  check_rules(v, c);
}

pipelines::GenerateOptions variant_options(const EvalConfig& config, const EvalVariant& variant) {
  pipelines::GenerateOptions options = config.generate;
  std::vector<std::string> lines;
  for (const auto& [key, value] : variant.generate) lines.push_back(key + "=" + value);
  try {
    config::read_overrides(lines, config::describe_root<pipelines::GenerateOptions>(), &options);
  } catch (const ConfigError& e) {
    fail<ConfigError>("variant '{}': {}", variant.label, e.what());
  }
  return options;
}

}  // namespace fewstep::eval
