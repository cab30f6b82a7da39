#include "eval/runner.h"

#include <ATen/Parallel.h>

#include <chrono>
#include <functional>
#include <iterator>
#include <optional>

#include "datasets/fashion_mnist.h"
#include "eval/cost.h"
#include "eval/eval_report.h"
#include "eval/heldout_loss.h"
#include "eval/in_loop.h"
#include "eval/patch_distance.h"
#include "eval/reconstruction.h"
#include "eval/statistics_file.h"
#include "eval/teacher_set.h"
#include "eval/token_metrics.h"
#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/hash.h"
#include "src/base/log.h"
#include "src/base/table.h"
#include "src/config/config.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep::eval {
namespace fs = std::filesystem;
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Everything the metrics need, loaded once.
struct Judges {
  std::unique_ptr<ImageEncoder> judge, second, patch_network, in_loop;
  std::unique_ptr<PatchEncoder> patch;
  std::unique_ptr<TextImageEncoder> clip;
  std::unique_ptr<FrechetReference> reference, second_reference, patch_reference, teacher_reference, in_loop_reference;
  MetricContext context, second_context;
};

std::unique_ptr<FrechetReference> reference_of(const ImageEncoder& encoder, const Tensor& images) {
  FeatureStatistics statistics;
  statistics.add(batched_features([&](const Tensor& x) { return encoder.features(x).flatten(0, -2); }, images));
  return std::make_unique<FrechetReference>(statistics);
}

bool wants(const EvalConfig& c, std::string_view metric) {
  return std::find(c.metrics.begin(), c.metrics.end(), metric) != c.metrics.end();
}

fs::path teacher_folder(const EvalConfig& c) {
  return c.teacher.images.empty() ? output_folder(c) / "teacher" : fs::path(c.teacher.images);
}

// What students are compared with: patches, the teacher's samples, a discriminator's features.
void load_student_judges(const EvalConfig& c, ImageSets& sets, at::Device device, Judges& j) {
  const Tensor& real = sets.reference().images;
  if (wants(c, "patch_fd")) {
    j.patch_network = load_image_encoder(c.patch_judge, c.patch_judge_name, device);
    j.patch = std::make_unique<PatchEncoder>(*j.patch_network, PatchOptions{.side = c.patch_side, .grid = true});
    if (const int64_t side = network_side(*j.patch_network); side != j.patch->side())
      log::warn("patch_side: patches of {} pixels are resized to the {} that {} reads", j.patch->side(), side, c.patch_judge);
    j.patch_reference = reference_of(*j.patch, real);
    j.context.patch = j.patch.get(), j.context.patch_reference = j.patch_reference.get(), j.context.patch_side = j.patch->side();
  }
  if (wants(c, "in_loop_fd")) {
    std::vector<EncoderIdentity> judges;
    for (const ImageEncoder* judge : {j.judge.get(), j.second.get(), j.patch_network.get()})
      if (judge) judges.push_back(judge->identity());
    j.in_loop = load_in_loop_encoder(c.in_loop, device, judges);
    j.in_loop_reference = reference_of(*j.in_loop, real);
    j.context.in_loop = j.in_loop.get(), j.context.in_loop_reference = j.in_loop_reference.get();
  }
  if (wants(c, "fd_teacher") && j.judge) {
    const TeacherSet teacher = teacher_set(c.teacher, teacher_folder(c), sets.captions(), device);
    j.teacher_reference = reference_of(*j.judge, teacher.images);
    j.context.teacher_reference = j.teacher_reference.get();
  }
}

// `reference_statistics.h5` is saved beside the results, for `fewstep eval fid` against the same real images.
Judges load_judges(const EvalConfig& c, const Dataset& test, ImageSets& sets, at::Device device) {
  Judges j;
  if (std::all_of(c.sets.begin(), c.sets.end(), [](const std::string& s) { return s == "model"; })) return j;
  const ImageSet& reference = sets.reference();
  j.context.reference_images = reference.images;
  j.context.training_images = [&sets] { return sets.training_images().images; };
  j.context.class_names = test.class_names();
  j.context.perceptual = c.perceptual.empty() ? c.judge : c.perceptual;
  j.context.perceptual_name = c.perceptual.empty() ? c.judge_name : c.perceptual_name;
  j.context.device = device;
  if (!c.judge.empty()) {
    j.judge = load_image_encoder(c.judge, c.judge_name, device);
    j.context.judge = j.judge.get();
    j.context.reference_features =
        batched_features([&](const Tensor& x) { return j.judge->features(x); }, reference.images);
    FeatureStatistics statistics;
    statistics.add(j.context.reference_features);
    const EncoderIdentity identity = j.judge->identity();
    save_statistics(output_folder(c) / "reference_statistics.h5", statistics,
                    {.encoder_sha256 = identity.sha256, .pipeline = identity.pipeline, .data_sha256 = test.fingerprint()});
    j.reference = std::make_unique<FrechetReference>(statistics);
    j.context.reference = j.reference.get();
  }
  if (!c.second_judge.empty()) {
    j.second = load_image_encoder(c.second_judge, c.second_judge_name, device);
    j.second_context.judge = j.second.get();
    j.second_context.reference_features =
        batched_features([&](const Tensor& x) { return j.second->features(x); }, reference.images);
    FeatureStatistics statistics;
    statistics.add(j.second_context.reference_features);
    j.second_reference = std::make_unique<FrechetReference>(statistics);
    j.second_context.reference = j.second_reference.get();
  }
  load_student_judges(c, sets, device, j);
  if (!c.clip.empty()) j.clip = load_text_image_encoder(c.clip, c.clip_name, device);
  j.context.clip = j.clip.get();
  if (const auto* fashion = dynamic_cast<const FashionMnist*>(&test)) j.context.thresholds = &fashion->thresholds();
  return j;
}

Qualification run_qualification(ImageSets& sets, const ImageEncoder& judge, int64_t seed) {
  const QualificationSets q{.reference = sets.reference().images,
                            .real = sets.get("real").images,
                            .reconstructions = sets.get("reconstructions").images,
                            .gaussian = sets.get("gaussian").images,
                            .independent = sets.get("independent_tokens").images,
                            .labels = sets.get("real").labels};
  return qualify(
      metric_name("FD", judge.identity()), [&](const Tensor& x) { return judge.features(x); }, q,
      static_cast<uint64_t>(seed));
}

// Of an earlier run, accepted only for the same weights.
Qualification earlier_qualification(const EvalConfig& c, const EncoderIdentity& judge) {
  const Results results = load_results(c.qualified_by);
  const std::string name = metric_name("FD", judge);
  if (!results.qualification)
    fail<ConfigError>("qualified_by: {} has no qualification; run that evaluation with qualify: true", c.qualified_by);
  if (results.qualification->encoder != name)
    fail<ConfigError>("qualified_by: {} qualified {}, this evaluation uses {}", c.qualified_by,
                      results.qualification->encoder, name);
  return *results.qualification;
}

Facts provenance_of(EvalConfig& c, const Dataset& test, const Judges& j) {
  Facts facts = collect_provenance();
  facts.emplace_back("config sha256", sha256_hex(config::to_yaml(c)));
  facts.emplace_back("seed", std::to_string(c.seed));
  facts.emplace_back("data", test.description());
  facts.emplace_back("data sha256", test.fingerprint());
  if (!c.model.empty()) {
    facts.emplace_back("model", c.model);
    const fs::path model = pipelines::find_model(c.model);
    std::vector<fs::path> components;
    for (const auto& entry : fs::directory_iterator(model))
      if (entry.is_directory()) components.push_back(entry.path());
    std::sort(components.begin(), components.end());
    for (const fs::path& component : components)
      for (const auto& file : fs::directory_iterator(component))
        if (file.path().extension() == ".safetensors")
          facts.emplace_back(component.filename().string() + " sha256", sha256_file(file.path().string()));
  }
  if (!c.images.empty()) facts.emplace_back("images", c.images);
  if (j.judge) facts.emplace_back(c.judge_name + " sha256", j.judge->identity().sha256);
  if (j.second) facts.emplace_back(c.second_judge_name + " sha256", j.second->identity().sha256);
  if (j.clip) facts.emplace_back(c.clip_name + " sha256", j.clip->identity().sha256);
  if (j.patch) facts.emplace_back(c.patch_judge_name + " sha256", j.patch->identity().sha256);
  if (j.in_loop) facts.emplace_back("in-loop sha256", j.in_loop->identity().sha256);
  if (c.teacher.on()) facts.emplace_back("teacher", c.teacher.model);
  facts.emplace_back("guidance", fmt::format("{}", c.generate.guidance));
  facts.emplace_back("temperature, top-k, top-p",
                     fmt::format("{}, {}, {}", c.generate.temperature, c.generate.top_k, c.generate.top_p));
  const std::string options = pipelines::changed_options(c.generate);
  facts.emplace_back("decoding", options.empty() ? "defaults" : options);
  if (!c.paired_with.empty()) facts.emplace_back("paired with", c.paired_with);
  return facts;
}

ResultRow row_of(const ImageSet& set, const EvalConfig& c) {
  ResultRow row{.label = set.label, .metrics = {}};
  row.steps = set.steps, row.nfe = set.nfe, row.step_compression = set.step_compression, row.seeds = {c.seed};
  return row;
}

SampleRecord record_of(const EvalConfig& c, const ImageSet& set, const Tensor& features, const Judges& j,
                       const std::string& protocol) {
  SampleRecord record{
      .tokens = set.tokens, .features = features, .caption_keys = caption_keys(set.captions), .seed = c.seed};
  if (j.judge) record.judge = metric_name("FD", j.judge->identity());
  record.model = hash_weights(find_component(c.model, {"LlamaForCausalLM", "UNet2DConditionModel"}));
  record.decoding = pipelines::changed_options(c.generate), record.protocol = protocol;
  return record;
}

// What only a set made by a model has: passes, tokens, latency. The set is kept beside the results for other
// evaluations.
void measure_generator(const EvalConfig& c, ImageSets& sets, const ImageSet& set, const Tensor& features,
                       const Judges& j, const std::string& protocol, ResultRow& row) {
  const auto* pipeline = dynamic_cast<const pipelines::AutoregressivePipeline*>(&sets.pipeline());
  if (pipeline) {
    row.metrics.merge(decoding_values(pipeline->statistics(set.runs), decoding::lossy(c.generate.decoder)));
    const SampleRecord own = record_of(c, set, features, j, protocol);
    std::optional<SampleRecord> baseline;
    if (!c.paired_with.empty()) baseline = load_baseline(c.paired_with, own);
    row.metrics.merge(token_values({.pipeline = *pipeline,
                                    .config = c,
                                    .samples = set,
                                    .own = own,
                                    .baseline = baseline ? &*baseline : nullptr,
                                    .reference = j.reference.get()}));
    save_samples(output_folder(c) / "samples.safetensors", own);
  } else if (!c.paired_with.empty() || std::any_of(c.metrics.begin(), c.metrics.end(), is_token_metric)) {
    fail<ConfigError>("{}: {}; token metrics and paired_with need an autoregressive model", c.model,
                      sets.pipeline().description());
  }
  if (c.latency.runs == 0) return;
  const auto teacher = c.teacher.on() ? pipelines::load(c.teacher.model, sets.device()) : nullptr;
  const TimedSetting other{teacher.get(), c.teacher.generate};
  measure_latency({&sets.pipeline(), c.generate}, set.captions, c.latency, static_cast<uint64_t>(c.seed), row,
                  teacher ? &other : nullptr);
}

bool follows_distribution(const std::string& set, const EvalConfig& c) {
  // Prompts of a file need not follow the data: their distance to it would measure the prompts.
  if (set == "samples" && !c.prompts_file.empty()) return false;
  return find_entry(image_set_kinds(), set, "image set").distribution;
}

}  // namespace

fs::path output_folder(const EvalConfig& c) { return c.out.empty() ? fs::path("runs") / c.name : fs::path(c.out); }

std::map<std::string, Value> measure(const ImageSet& set, bool distribution, const std::vector<std::string>& names,
                                     const MetricContext& context, Tensor* features) {
  const NoGrad no_grad;
  std::vector<std::unique_ptr<Metric>> metrics;
  for (const std::string& name : names) {
    const MetricKind& kind = find_entry(metric_kinds(), name, "metric");
    if (distribution || !kind.distribution) metrics.push_back(kind.make(context));
  }
  std::vector<Tensor> parts;
  const int64_t N = set.images.size(0);
  for (int64_t i = 0; i < N; i += 250) {
    const int64_t end = std::min<int64_t>(i + 250, N);
    EvalBatch batch{.images = set.images.slice(0, i, end),
                    .captions = {set.captions.begin() + i, set.captions.begin() + end},
                    .labels = set.labels.defined() ? set.labels.slice(0, i, end) : Tensor(),
                    .features = {},
                    .logits = {},
                    .originals = set.originals.defined() ? set.originals.slice(0, i, end) : Tensor()};
    if (context.judge) {
      Encoded encoded = context.judge->encode(batch.images);
      batch.features = encoded.features, batch.logits = encoded.logits;
      if (features) parts.push_back(encoded.features);
    }
    for (const auto& metric : metrics) metric->add(batch);
  }
  if (features && !parts.empty()) *features = at::cat(parts);
  std::map<std::string, Value> values;
  for (const auto& metric : metrics) values.merge(metric->result());
  return values;
}

namespace {

ResultRow measured_row(const EvalConfig& c, const ImageSet& set, bool distribution, const Judges& judges,
                       Tensor* features = nullptr) {
  ResultRow row = row_of(set, c);
  std::vector<std::string> of_images, of_features;
  for (const std::string& name : c.metrics) {
    if (is_token_metric(name) || is_model_metric(name) || is_cost_metric(name)) continue;
    of_images.push_back(name);
    if (name == "fd" || name == "kd" || name == "prdc" || name == "rfd") of_features.push_back(name);
  }
  row.metrics = measure(set, distribution, of_images, judges.context, features);
  if (judges.second) row.metrics.merge(measure(set, distribution, of_features, judges.second_context));
  return row;
}

// One row a set, then one a variant. `lap` is told what has been done, for the report's times.
std::vector<ResultRow> measured_rows(const EvalConfig& c, const Dataset& test, ImageSets& sets, const Judges& judges,
                                     const std::string& protocol, const std::function<void(const std::string&)>& lap) {
  const bool of_model = std::any_of(c.metrics.begin(), c.metrics.end(), is_model_metric);
  const auto model_values = [&]() -> std::map<std::string, Value> {
    if (!of_model) return {};
    return heldout_loss(sets.pipeline(), test, c.num_samples, static_cast<uint64_t>(c.seed));
  };
  std::vector<ResultRow> rows;
  for (const std::string& name : c.sets) {
    if (name == "model") {
      rows.push_back({.label = name, .metrics = model_values()});
      rows.back().seeds = {c.seed};
      lap("measuring: the model");
      continue;
    }
    const ImageSet& set = sets.get(name);
    lap("making: " + set.label);
    Tensor features;
    rows.push_back(measured_row(c, set, follows_distribution(name, c), judges, &features));
    if (name == "samples" && !c.model.empty()) {
      measure_generator(c, sets, set, features, judges, protocol, rows.back());
      if (wants(c, kCost)) rows.back().metrics.merge(cost_values(c, sets.pipeline(), set, c.generate));
      rows.back().metrics.merge(model_values());
    }
    lap("measuring: " + set.label);
  }
  for (const EvalVariant& variant : c.variants) {
    const pipelines::GenerateOptions options = variant_options(c, variant);
    ImageSet set = sets.samples(options, variant.num_samples);
    set.label = variant.label;
    rows.push_back(measured_row(c, set, follows_distribution("samples", c), judges));
    if (wants(c, kCost)) rows.back().metrics.merge(cost_values(c, sets.pipeline(), set, options));
    lap("variant: " + set.label);
  }
  return rows;
}

}  // namespace

void attach_floors(std::vector<ResultRow>& rows, const ResultRow& real) {
  for (ResultRow& row : rows)
    for (auto& [name, value] : row.metrics) {
      static constexpr std::string_view kOfSets[] = {"FD",     "KD",      "FID",      "KID",      "precision",
                                                     "recall", "density", "coverage", "patch_FD", "patch-FID", "in_loop_FD"};
      // Real images are at some distance to the teacher's, but that is no floor.
      const bool of_sets = !name.starts_with("FD_teacher") &&
                           std::any_of(std::begin(kOfSets), std::end(kOfSets), [&, n = std::string_view(name)](std::string_view k) { return n.starts_with(k); });
      const auto it = real.metrics.find(name);
      if (of_sets && it != real.metrics.end() && it->second.n == value.n) value.floor = it->second.value;
    }
}

void mark_unqualified(std::vector<ResultRow>& rows, const EncoderIdentity& judge) {
  const std::string tag = fmt::format("[{}@{}", judge.name, judge.sha256.substr(0, 8));
  for (ResultRow& row : rows)
    for (auto& [name, value] : row.metrics)
      if (name.find(tag) != std::string::npos && !name.starts_with("class_accuracy"))
        value.note = "encoder not qualified";
}

Results run_evaluation(EvalConfig& c, at::Device device) {
  if (c.threads > 0) at::set_num_threads(static_cast<int>(c.threads));
  const fs::path out = output_folder(c);
  make_directories(out);
  if (!c.paired_with.empty()) open_baseline(c.paired_with, c.seed);  // an error now, not after all samples are drawn
  for (const EvalVariant& variant : c.variants) variant_options(c, variant);  // as early
  std::vector<std::pair<std::string, double>> timing;
  auto start = Clock::now();
  const auto lap = [&](const std::string& part) {
    timing.emplace_back(part, seconds_since(start));
    start = Clock::now();
  };
  const auto test = c.data->build(c.split);
  ImageSets sets(c, *test, device);
  const Judges judges = load_judges(c, *test, sets, device);
  lap("data and reference");

  Results results;
  results.name = c.name;
  if (c.qualify)
    results.qualification = run_qualification(sets, *judges.judge, c.seed);
  else if (!c.qualified_by.empty() && judges.judge)
    results.qualification = earlier_qualification(c, judges.judge->identity());
  if (c.qualify)
    log::info("encoder qualification\n{}", format_qualification(*results.qualification)), lap("qualification");

  results.protocol = fmt::format("{}; N = {} a set against {} disjoint real images; prompts: {}; seed {}",
                                 test->description(), c.num_samples, c.reference_samples,
                                 c.prompts_file.empty() ? fmt::format("captions of the {} split", name_of(c.split)) : c.prompts_file, c.seed);
  results.rows = measured_rows(c, *test, sets, judges, results.protocol, lap);
  const auto real = std::find(c.sets.begin(), c.sets.end(), "real");
  if (real != c.sets.end())
    attach_floors(results.rows, ResultRow(results.rows[static_cast<size_t>(real - c.sets.begin())]));
  if (judges.judge && !(results.qualification && results.qualification->passed))
    mark_unqualified(results.rows, judges.judge->identity());

  if (judges.judge) results.encoders.push_back(judges.judge->identity());
  if (judges.clip) results.encoders.push_back(judges.clip->identity());
  if (judges.patch) results.encoders.push_back(judges.patch->identity());
  if (judges.in_loop) results.encoders.push_back(judges.in_loop->identity());
  if (!c.perceptual.empty() && std::find(c.metrics.begin(), c.metrics.end(), "perceptual") != c.metrics.end())
    results.encoders.push_back(perceptual_identity(judges.context));
  results.provenance = provenance_of(c, *test, judges);
  save_results(out / "results.json", results);
  if (c.report) write_report(out / "report.html", make_eval_report(c, results, sets, *test, timing));
  return results;
}

std::string results_table(const Results& results) {
  std::vector<std::string> names, rest;
  for (const std::string& name : metric_names(results.rows))
    (is_generator_metric(name) || is_in_loop_metric(name) ? rest : names).push_back(name);
  const auto text = [](const Value& v) { return format_value(v) + (v.note.empty() ? "" : " (" + v.note + ")"); };
  std::string out = "| images |";
  for (const std::string& name : names) out += fmt::format(" {} |", name);
  out += "\n|---|";
  for (size_t i = 0; i < names.size(); ++i) out += "---|";
  out += "\n";
  for (const ResultRow& row : results.rows) {
    out += fmt::format("| {} |", row.label);
    for (const std::string& name : names) {
      const auto it = row.metrics.find(name);
      out += it == row.metrics.end() ? " - |" : fmt::format(" {} |", text(it->second));
    }
    out += "\n";
  }
  for (const ResultRow& row : results.rows)
    for (const std::string& name : rest)
      if (const auto it = row.metrics.find(name); it != row.metrics.end())
        out += fmt::format("\n- {}{}: {} {}", is_in_loop_metric(name) ? "[in-loop] " : "", row.label, name, text(it->second));
  return out + (rest.empty() ? "" : "\n");
}

}  // namespace fewstep::eval
