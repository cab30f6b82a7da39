#include "eval/protocol_runner.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "eval/generation.h"
#include "eval/latency.h"
#include "eval/protocol_run.h"
#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/hash.h"
#include "src/base/json.h"
#include "src/base/log.h"
#include "src/config/config.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"

namespace fewstep::eval {
namespace fs = std::filesystem;
namespace {

void choose(ProtocolRun& run) {
  ProtocolConfig& c = run.config;
  const std::vector<CocoImage> all = c.karpathy_split.empty() ? read_coco_captions(c.annotations)
                                                              : read_karpathy_captions(c.annotations, c.karpathy_split);
  PromptRule rule = run.protocol.prompts;
  const auto images = static_cast<int64_t>(all.size());
  int64_t available = 0;
  for (const CocoImage& image : all)
    available +=
        rule.draw == PromptDraw::captions ? static_cast<int64_t>(image.captions.size()) : !image.captions.empty();
  if (rule.count > available) {  // all there are, under a name that says so
    log::warn("{}: {} prompts can be drawn; {} is defined on {}", c.annotations, available, c.protocol, rule.count);
    rule.count = available;
  }
  if (c.limit > 0) rule.count = std::min(c.limit, rule.count == 0 ? available : rule.count);
  if (c.prompts_file.empty()) {
    run.prompts = choose_prompts(all, rule);
  } else {
    run.prompts = read_prompt_lines(c.prompts_file);
    if (c.limit > 0) run.prompts.resize(std::min(run.prompts.size(), static_cast<size_t>(c.limit)));
    if (run.protocol.reference == ReferenceImages::chosen)
      fail<ConfigError>("prompts_file: {} compares with the images of its captions; a list of lines does not name them",
                        c.protocol);
  }
  if (run.prompts.empty()) fail<DataError>("{}: no caption in it", c.annotations);
  run.label = protocol_label(run.protocol, static_cast<int64_t>(run.prompts.size()), images);
  // A published list is not the protocol's own draw: the same N of other captions is another measurement.
  if (!c.prompts_file.empty()) run.label += fmt::format(", prompts {}", prompts_sha256(run.prompts).substr(0, 8));
  if (c.images.empty()) return;
  std::vector<std::string> names;
  if (run.protocol.reference == ReferenceImages::chosen)
    for (const Prompt& p : run.prompts) names.push_back(p.file_name);
  else
    for (const CocoImage& image : all) names.push_back(image.file_name);
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());  // two captions of one image
  run.real = image_files_of(c.images, std::move(names));
}

// Of other tools' samples: lines {"file_name": ..., "caption_id": ...} of metadata.jsonl; empty without them.
std::map<int64_t, std::string> listed_samples(const fs::path& folder) {
  std::map<int64_t, std::string> names;
  std::ifstream list(folder / "metadata.jsonl");
  for (std::string line; std::getline(list, line);) {
    const Json row = Json::parse(line, nullptr, false);
    if (row.is_object() && row.contains("caption_id") && row["caption_id"].is_number_integer())
      names[row["caption_id"].get<int64_t>()] = row.value("file_name", "");
  }
  return names;
}

// Finished images in the order of the prompts.
std::shared_ptr<const ImageSource> samples_in(const fs::path& folder, const std::vector<Prompt>& prompts) {
  const std::map<int64_t, std::string> listed = listed_samples(folder);
  std::vector<std::string> names;
  for (const Prompt& p : prompts) {
    const auto it = listed.find(p.caption_id);
    if (!listed.empty() && it == listed.end())
      fail<DataError>("{}: metadata.jsonl names no image for caption id {} (\"{}\"); prompts.jsonl lists what is wanted",
                      folder.string(), p.caption_id, p.text);
    names.push_back(listed.empty() ? sample_name(p.caption_id) : it->second);
  }
  return image_files_of(folder, std::move(names));
}

void provide_samples(ProtocolRun& run) {
  ProtocolConfig& c = run.config;
  if (!c.samples.empty()) {
    run.samples = samples_in(c.samples, run.prompts);
    return;
  }
  const auto pipeline = pipelines::load(c.run, run.world.device());
  GenerationPlan plan{.folder = output_folder(c) / "samples",
                      .prompts = run.prompts,
                      .model_sha256 = model_sha256(pipelines::find_model(c.run)),
                      .seed = static_cast<uint64_t>(c.seed),
                      .shared_noise = run.protocol.shared_noise,
                      .options = c.generate};
  const GenerationResult made = generate_images(plan, *pipeline, run.world);
  log::info("samples: {} drawn, {} were there; {:.4g} steps, {:.4g} model calls an image", made.made, made.kept,
            made.steps, made.nfe);
  run.samples = samples_in(plan.folder, run.prompts);
  run.row.steps = made.steps, run.row.nfe = made.nfe, run.row.step_compression = made.step_compression;
  run.row.seeds = {c.seed};
  run.results.provenance.emplace_back("model", c.run);
  run.results.provenance.emplace_back("model sha256", plan.model_sha256);
  run.results.provenance.emplace_back("pipeline", pipeline->description());
  if (c.latency.runs > 0 && run.world.is_main()) {
    std::vector<std::string> texts;
    for (const Prompt& p : run.prompts) texts.push_back(p.text);
    measure_latency({pipeline.get(), c.generate}, texts, c.latency, plan.seed, run.row);
  }
  run.world.barrier();  // nobody computes beside the timing
}

void provide_baseline(ProtocolRun& run) {
  const std::string& folder = run.config.paired_with;
  if (folder.empty()) return;
  const fs::path samples = fs::path(folder) / "samples";
  const Json other = read_json(samples / "generation.json");
  const std::string own = prompts_sha256(run.prompts);
  if (other.value("prompts_sha256", "") != own)
    fail<ConfigError>("paired_with: {} has other prompts ({} against {}); pairs need the same protocol and limit",
                      folder, other.value("prompts_sha256", "").substr(0, 8), own.substr(0, 8));
  if (other.value("seed", int64_t{-1}) != run.config.seed)
    fail<ConfigError>("paired_with: {} was drawn with seed {}, this with {}; pairs need one seed", folder,
                      other.value("seed", int64_t{-1}), run.config.seed);
  run.baseline = samples_in(samples, run.prompts);
}

// MLPerf's acceptance: only for the whole protocol with the published networks' weights.
void check_bounds(ProtocolRun& run) {
  const Protocol& p = run.protocol;
  if (p.fid_high <= 0 || run.label != p.name) return;
  for (auto& [name, value] : run.row.metrics) {
    const bool fid = name.starts_with("FID["), clip = name.starts_with("CLIP-Score[");
    if (!fid && !clip) continue;
    const double low = fid ? p.fid_low : p.clip_low, high = fid ? p.fid_high : p.clip_high;
    value.note = fmt::format("{} the bounds {:.6g} ... {:.6g}",
                             value.value >= low && value.value <= high ? "within" : "outside", low, high);
  }
}

// Names what was measured and how.
void finish(ProtocolRun& run) {
  const ProtocolConfig& c = run.config;
  Results& results = run.results;
  results.name = c.name, run.row.label = "samples", run.row.protocol = run.label;
  results.protocol = fmt::format("{}: {}; {} prompts (sha256 {}), real images: {}, seed {}", run.label,
                                 run.protocol.meaning, run.prompts.size(), prompts_sha256(run.prompts).substr(0, 8),
                                 run.real ? std::to_string(run.real->size()) : c.reference, c.seed);
  results.rows = {run.row};
  Facts facts = collect_provenance();
  facts.insert(facts.end(), {{"config sha256", sha256_hex(config::to_yaml(run.config))},
                             {"prompts sha256", prompts_sha256(run.prompts)},
                             {"seed", std::to_string(c.seed)},
                             {"processes", std::to_string(run.world.size())}});
  if (const std::string options = pipelines::changed_options(c.generate); !options.empty())
    facts.emplace_back("decoding", options);
  results.provenance.insert(results.provenance.begin(), facts.begin(), facts.end());
}

}  // namespace

fs::path output_folder(const ProtocolConfig& c) { return c.out.empty() ? fs::path("runs") / c.name : fs::path(c.out); }

Results run_protocol(ProtocolConfig& c, dist::World& world) {
  if (c.threads > 0) at::set_num_threads(static_cast<int>(c.threads));
  const NoGrad no_grad;
  const fs::path out = output_folder(c);
  ProtocolRun run{.config = c, .world = world, .protocol = protocol_of(c)};
  choose(run);
  std::vector<std::pair<const ViewKind*, ProtocolMetrics>> views;
  for (const ViewKind& view : view_kinds())
    if (ProtocolMetrics wanted = wanted_metrics(run, view); !wanted.empty()) views.emplace_back(&view, wanted);
  if (views.empty()) fail<ConfigError>("encoders: give at least one network, e.g. encoders.inception");
  if (world.is_main()) {
    make_directories(out);
    write_prompts(out / "prompts.jsonl", run.prompts);
  }
  provide_baseline(run);
  if (!c.run.empty())
    for (const auto& [view, wanted] : views) probe(run, *view);
  provide_samples(run);
  for (const auto& [view, wanted] : views) look(run, *view, wanted);
  check_bounds(run);
  finish(run);
  if (world.is_main()) {
    save_results(out / "results.json", run.results);
    write_protocol_report(out,
                          {.results = run.results,
                           .prompts = run.prompts,
                           .samples = *run.samples,
                           .counts = run.counts,
                           .truncated_captions = run.truncated,
                           .cosines = run.cosines,
                           .places = run.places,
                           .clip_name = run.clip_name},
                          c.report);
  }
  world.barrier();
  return run.results;
}

}  // namespace fewstep::eval
