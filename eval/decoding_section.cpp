#include "eval/decoding_section.h"

#include <algorithm>
#include <cmath>

#include "eval/latency.h"
#include "src/base/error.h"
#include "src/base/memory.h"
#include "src/base/text.h"
#include "src/io/svg_plot.h"
#include "src/tensor/ops.h"

namespace fewstep::eval {
namespace {

using decoding::DecoderKind;
constexpr int64_t kPictures = 10, kStrips = 3;  // of a strip; of a report
constexpr int64_t kFewest = 50;                 // drafts of an age that are worth a point
constexpr int64_t kSideBySideIndex = int64_t{1} << 41;

std::vector<std::string> distinct(const std::vector<std::string>& captions, int64_t count) {
  std::vector<std::string> out;
  for (const std::string& caption : captions) {
    if (static_cast<int64_t>(out.size()) == count) break;
    if (std::find(out.begin(), out.end(), caption) == out.end()) out.push_back(caption);
  }
  return out;
}

SideBySide side_by_side(const EvalConfig& c, ImageSets& sets, const std::vector<std::string>& prompts) {
  SideBySide out{.prompts = prompts, .ar = {}, .own = {}};
  pipelines::GenerateOptions plain = autoregressive(c.generate);
  // With the decoder's own Gumbel noise the exact decoders draw the very same tokens.
  plain.decoder.coupling =
      c.generate.decoder.coupling == decoding::Coupling::gumbel ? decoding::Coupling::gumbel : decoding::Coupling::none;
  const auto seed = static_cast<uint64_t>(c.seed);
  const auto ar = sets.pipeline().generate(prompts, seed, kSideBySideIndex, plain);
  const auto own = sets.pipeline().generate(prompts, seed, kSideBySideIndex, c.generate);
  out.ar = ar.images, out.own = own.images;
  if (plain.decoder.coupling == decoding::Coupling::gumbel && !decoding::lossy(c.generate.decoder))
    out.same_tokens = ar.tokens.eq(own.tokens).to(at::kDouble).mean().item<double>();
  return out;
}

ReportTable numbers_table(const DecodingEvidence& e, const ResultRow& row) {
  ReportTable table{.header = {"quantity", "value"}, .rows = {}};
  const auto add = [&](const std::string& name, const std::string& value) { table.rows.push_back({name, value}); };
  const auto metric = [&](const char* name, const std::string& label) {
    if (const auto it = row.metrics.find(name); it != row.metrics.end()) add(label, format_value(it->second));
  };
  add("tokens an image", std::to_string(e.tokens));
  metric("passes", "passes an image, the prompt's included");
  metric("step_compression", "step compression S, mean over images of tokens / passes");
  metric("step_compression[ratio of means]", "all tokens / all passes");
  metric("step_compression[foreground]", "S where the image is not background");
  metric("step_compression[without structural]", "S without structural tokens");
  metric("ms_per_pass", fmt::format("ms a pass, {} images together", e.batch_size));
  metric("tokens_per_second", fmt::format("tokens a second, {} images together", e.batch_size));
  metric("decoder_overhead", "share of the time outside the transformer");
  add("an image, tokens only", human_duration(e.inner));
  add("an image, with its pixels", human_duration(e.outer));
  if (e.peak_memory > 0) add("peak memory of the process", human_bytes(static_cast<uint64_t>(e.peak_memory)));
  for (const char* name : {"token_nll", "token_nll_difference", "token_outside", "token_auc", "draft_stability"})
    metric(name, name);
  return table;
}

ReportTable latency_table(const DecodingEvidence& e, const ResultRow& row) {
  ReportTable table{.title = "Latency, both decoders in turns",
                    .header = {"decoder", "batch", "p50", "p95", "p50, tokens only", "runs"},
                    .rows = {}};
  for (const auto& [name, l] : {std::pair<std::string, Latency>{"ar", row.latency_ar},
                                {std::string(decoding::name_of(e.decoder.kind)), row.latency}})
    table.rows.push_back({name, std::to_string(l.batch), human_duration(l.p50), human_duration(l.p95),
                          human_duration(l.inner_p50), std::to_string(l.runs)});
  if (const auto it = row.metrics.find("speed_up[ar]"); it != row.metrics.end())
    table.note = fmt::format("{} times as fast, geometric mean over turns.", format_value(it->second));
  return table;
}

std::vector<std::string> plots_of(const DecodingEvidence& e, const ResultRow& row) {
  std::vector<std::string> plots;
  const std::vector<int64_t> lengths = e.statistics.accepted_lengths();
  double passes = 0;
  for (size_t m = 1; m < lengths.size(); ++m) passes += static_cast<double>(lengths[m]);
  if (passes > 0) {
    constexpr size_t kBars = 24;  // the last one and more
    std::vector<std::string> labels;
    std::vector<double> shares;
    for (size_t m = 1; m < lengths.size(); ++m) {
      if (m <= kBars) labels.push_back(std::to_string(m)), shares.push_back(0);
      shares.back() += static_cast<double>(lengths[m]) / passes;
    }
    if (lengths.size() > kBars + 1) labels.back() += "+";
    plots.push_back(io::svg_bars(
        labels, shares, {.title = "Tokens a pass commits", .x_label = "tokens", .y_label = "share of passes"}));
  }
  io::Series accepted{"accepted", {}, {}}, stable{"stay", {}, {}};
  const auto ages = e.statistics.acceptance_by_age();
  for (size_t a = 0; a < ages.size(); ++a)
    if (ages[a].first >= kFewest) accepted.x.push_back(static_cast<double>(a)), accepted.y.push_back(ages[a].second);
  if (accepted.x.size() > 1)
    plots.push_back(io::svg_lines(
        {accepted},
        {.title = "Acceptance by age of the draft", .x_label = "passes in the window", .y_label = "share accepted"}));
  std::vector<std::string> ranges;
  std::vector<double> compression;
  for (const auto& bin : e.statistics.by_entropy())
    ranges.push_back(fmt::format("{:.1f}-{:.1f}", bin.low, bin.high)), compression.push_back(bin.compression);
  if (ranges.size() > 1)
    plots.push_back(io::svg_bars(ranges, compression,
                                 {.title = "S against entropy of the token's law",
                                  .x_label = "nats, equal shares of the tokens",
                                  .y_label = "tokens a pass"}));
  for (int64_t age = 0; age < 64; age = age == 0 ? 1 : 2 * age)
    if (const auto it = row.metrics.find(fmt::format("draft_stability[age={}]", age)); it != row.metrics.end())
      stable.x.push_back(static_cast<double>(age)), stable.y.push_back(it->second.value);
  if (stable.x.size() > 1)
    plots.push_back(io::svg_lines(
        {stable},
        {.title = "Drafts that a pass leaves as they were", .x_label = "passes in the window", .y_label = "share"}));
  return plots;
}

std::string law_line(const DecodingEvidence& e) {
  if (e.decoder.kind == DecoderKind::ar) return "This is the model's autoregressive law itself.";
  if (decoding::lossy(e.decoder)) return "Lossy: the images follow another law than the model's autoregressive one.";
  std::string line = "Exact: the images follow the model's autoregressive law.";
  if (std::isfinite(e.beside.same_tokens))
    line +=
        fmt::format(" With the same Gumbel noise, {:.2f} % of the tokens below are those that plain decoding draws.",
                    100 * e.beside.same_tokens);
  return line;
}

}  // namespace

DecodingEvidence gather_decoding(const EvalConfig& c, ImageSets& sets) {
  const ImageSet& set = sets.get("samples");
  auto& pipeline = dynamic_cast<pipelines::AutoregressivePipeline&>(sets.pipeline());
  DecodingEvidence e{.decoder = c.generate.decoder,
                     .options = pipelines::changed_options(c.generate),
                     .statistics = pipeline.statistics(set.runs)};
  e.tokens = pipeline.layout().image_length(), e.batch_size = std::min(c.generate.batch_size, c.num_samples);
  const auto images = static_cast<double>(set.images.size(0));
  for (const pipelines::Generated& run : set.runs) {
    double tokens = 0;
    for (const decoding::Decoded& d : run.decoded) tokens += d.seconds;
    e.inner += tokens / images, e.outer += (tokens + run.decode_seconds) / images;
  }
  e.peak_memory = peak_memory();
  if (c.generate.decoder.kind == DecoderKind::ar || c.report_prompts == 0) return e;
  const std::vector<std::string> prompts = distinct(set.captions, c.report_prompts);
  e.strip_prompts = {prompts.begin(),
                     prompts.begin() + std::min<int64_t>(kStrips, static_cast<int64_t>(prompts.size()))};
  e.strips = pipeline.strips(e.strip_prompts, static_cast<uint64_t>(c.seed), c.generate, kPictures);
  e.beside = side_by_side(c, sets, prompts);
  return e;
}

ReportSection decoding_section(const DecodingEvidence& e, const ResultRow& row) {
  ReportSection section{.heading = "Decoding"};
  section.paragraphs.push_back(fmt::format("Decoder {}{}. {}", decoding::name_of(e.decoder.kind),
                                           e.options.empty() ? "" : " (" + e.options + ")", law_line(e)));
  section.tables.push_back(numbers_table(e, row));
  if (row.latency_ar.runs > 0) section.tables.push_back(latency_table(e, row));
  if (e.decoder.kind != DecoderKind::ar) section.plots = plots_of(e, row);
  if (!e.beside.prompts.empty()) {
    std::string caption = fmt::format("The same captions and seed: above plain autoregressive decoding, below {}.",
                                      decoding::name_of(e.decoder.kind));
    for (size_t i = 0; i < e.beside.prompts.size(); ++i)
      caption += fmt::format("{} {}", i ? ";" : " From left to right:", e.beside.prompts[i]);
    section.figures.push_back(
        grid_figure(at::cat({e.beside.ar, e.beside.own}), static_cast<int64_t>(e.beside.prompts.size()), caption));
  }
  for (size_t i = 0; i < e.strips.size(); ++i) {
    const pipelines::Strip& strip = e.strips[i];
    std::string passes;
    for (int64_t p : strip.passes) passes += fmt::format("{}{}", passes.empty() ? "" : ", ", p);
    section.figures.push_back(
        grid_figure(at::stack(strip.images), static_cast<int64_t>(strip.images.size()),
                    fmt::format("{}: after pass {}. Dark slots are still noisy, black ones not yet in the window.",
                                e.strip_prompts[i], passes)));
  }
  return section;
}

std::vector<ReportHeadline> decoding_headlines(const ResultRow& row) {
  std::vector<ReportHeadline> out;
  const auto s = row.metrics.find("step_compression"), passes = row.metrics.find("passes"),
             faster = row.metrics.find("speed_up[ar]");
  if (s != row.metrics.end() && s->second.value != 1)
    out.push_back({"Step compression", format_number(s->second.value),
                   fmt::format("\u00b1 {}; {} passes an image{}", format_number(s->second.ci95),
                               passes == row.metrics.end() ? "-" : format_number(passes->second.value),
                               s->second.note.empty() ? "" : ", " + s->second.note)});
  if (faster != row.metrics.end())
    out.push_back({"Latency against AR", fmt::format("{:.2f} x", faster->second.value),
                   fmt::format("p50 {} against {}, batch {}", human_duration(row.latency.p50),
                               human_duration(row.latency_ar.p50), row.latency.batch)});
  return out;
}

}  // namespace fewstep::eval
