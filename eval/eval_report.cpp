#include "eval/eval_report.h"

#include "eval/cost.h"
#include "eval/decoding_section.h"
#include "src/base/text.h"
#include "src/tensor/ops.h"

namespace fewstep::eval {
namespace {

constexpr int64_t kColumns = 12;

bool wanted(const EvalConfig& c, std::string_view set) {
  return std::find(c.sets.begin(), c.sets.end(), set) != c.sets.end();
}

// Rows of real images, each followed by its row of reconstructions.
Tensor interleaved(const Tensor& above, const Tensor& below, int64_t columns, int64_t blocks) {
  std::vector<Tensor> rows;
  for (int64_t b = 0; b < blocks && (b + 1) * columns <= above.size(0); ++b) {
    rows.push_back(above.slice(0, b * columns, (b + 1) * columns));
    rows.push_back(below.slice(0, b * columns, (b + 1) * columns));
  }
  return rows.empty() ? above : at::cat(rows);
}

ReportSection reconstruction_section(ImageSets& sets) {
  const Tensor &real = sets.get("real").images, &again = sets.get("reconstructions").images;
  const int64_t columns = std::min(kColumns, real.size(0));
  return {.heading = "Reconstructions",
          .paragraphs = {"What the tokenizer keeps of an image is the most any model on its tokens can show."},
          .figures = {grid_figure(interleaved(real, again, columns, 3), columns,
                                  "Real test images, each above its reconstruction")}};
}

// One row a class: `columns` samples each, as far as there are that many.
ReportFigure class_figure(const ImageSet& set, const std::vector<std::string>& names, const std::string& what) {
  std::vector<Tensor> rows;
  std::string shown;
  const int64_t K = static_cast<int64_t>(names.size());
  for (int64_t k = 0; k < K; ++k) {
    const Tensor of_class = at::eq(set.labels, k).nonzero().squeeze(1);
    if (of_class.size(0) < kColumns) continue;
    rows.push_back(set.images.index_select(0, of_class.slice(0, 0, kColumns)));
    shown += fmt::format("{}{}", shown.empty() ? "" : ", ", names[static_cast<size_t>(k)]);
  }
  if (rows.empty()) return grid_figure(set.images.slice(0, 0, 8 * kColumns), kColumns, what);
  return grid_figure(at::cat(rows), kColumns, fmt::format("{}; rows: {}", what, shown));
}

ReportSection sample_section(ImageSets& sets, const Dataset& test) {
  ReportSection section{.heading = "Samples"};
  const ImageSet& samples = sets.get("samples");
  section.figures.push_back(
      class_figure(samples, test.class_names(), "Samples by the class their caption names, first come"));
  section.figures.push_back(class_figure(sets.get("real"), test.class_names(), "Real test images for comparison"));
  return section;
}

ReportSection prompt_section(const EvalConfig& c, ImageSets& sets) {
  constexpr int64_t kEach = 8;
  ReportSection section{.heading = "Samples by prompt", .paragraphs = {"Eight samples of each prompt, not selected."}};
  std::vector<std::string> prompts;
  const auto take = [&](const ImageSet& set, int64_t count) {
    for (const std::string& caption : set.captions) {
      if (count == 0) break;
      if (std::find(prompts.begin(), prompts.end(), caption) != prompts.end()) continue;
      prompts.push_back(caption), --count;
    }
  };
  const bool compositional = wanted(c, "compositional");
  take(sets.get("samples"), compositional ? (c.report_prompts + 1) / 2 : c.report_prompts);
  if (compositional) take(sets.get("compositional"), c.report_prompts / 2);
  const Tensor images = sets.sample_prompts(prompts, kEach);
  for (size_t i = 0; i < prompts.size(); ++i) {
    const auto first = static_cast<int64_t>(i) * kEach;
    section.figures.push_back(grid_figure(images.slice(0, first, first + kEach), 4, prompts[i]));
  }
  return section;
}

ReportSection control_section(const EvalConfig& c, ImageSets& sets) {
  ReportSection section{.heading = "Controls",
                        .paragraphs = {"Image sets of known quality that the distances are read against."}};
  for (const ImageSetKind& kind : image_set_kinds()) {
    const bool control = kind.name == "gaussian" || kind.name == "independent_tokens" || kind.name == "half_resolution";
    if (control && (wanted(c, kind.name) || (c.qualify && kind.name != "half_resolution")))
      section.figures.push_back(
          grid_figure(sets.get(std::string(kind.name)).images.slice(0, 0, 24), 6, std::string(kind.label)));
  }
  return section;
}

const Value* find_value(const std::vector<ResultRow>& rows, const std::string& label, std::string_view prefix) {
  for (const ResultRow& row : rows)
    if (row.label == label)
      for (const auto& [name, value] : row.metrics)
        if (name.starts_with(prefix) && (name.size() == prefix.size() || prefix.ends_with('['))) return &value;
  return nullptr;
}

std::vector<ReportHeadline> headlines_of(const Results& results) {
  std::vector<ReportHeadline> out;
  const auto percent = [](const Value& v) { return fmt::format("{:.1f} %", 100 * v.value); };
  const Value* fd = find_value(results.rows, "samples", "FD[");
  if (fd) {
    const Value* again = find_value(results.rows, "reconstructions", "FD[");
    out.push_back({"Frechet distance of samples", format_number(fd->value),
                   fmt::format("\u00b1 {}{}{}", format_number(fd->ci95),
                               again ? fmt::format("; reconstructions {}", format_number(again->value)) : "",
                               std::isfinite(fd->floor) ? fmt::format("; real {}", format_number(fd->floor)) : ""),
                   fd->note.empty()});
  }
  struct Card {
    const char *prefix, *label;
    bool share;
  };
  for (const Card& card : {Card{"class_accuracy[", "Class as captioned", true},
                           Card{"attribute_accuracy", "Attributes as captioned", true}, Card{"recall[", "Recall", true},
                           Card{"CLIPScore[", "CLIPScore", false}}) {
    const Value* v = find_value(results.rows, "samples", card.prefix);
    if (!v) continue;
    const Value* real = find_value(results.rows, "real test images", card.prefix);
    out.push_back({card.label, card.share ? percent(*v) : format_number(v->value),
                   !real ? fmt::format("N = {}", v->n)
                         : fmt::format("real images {}", card.share ? percent(*real) : format_number(real->value))});
  }
  for (const ResultRow& row : results.rows)
    for (ReportHeadline& card : decoding_headlines(row)) out.push_back(std::move(card));
  for (const ResultRow& row : results.rows)
    if (row.latency.runs > 0)
      out.push_back({"Latency p50", human_duration(row.latency.p50),
                     fmt::format("p95 {}; batch {}, {:.4g} steps", human_duration(row.latency.p95), row.latency.batch,
                                 row.steps)});
  if (results.qualification)
    out.push_back({"Encoder", results.qualification->passed ? "qualified" : "not qualified",
                   results.qualification->passed ? "ranks known sets in order" : "see the reasons below",
                   results.qualification->passed});
  return out;
}

}  // namespace

Report make_eval_report(const EvalConfig& c, const Results& results, ImageSets& sets, const Dataset& test,
                        const std::vector<std::pair<std::string, double>>& seconds) {
  Report report{.title = c.title.empty() ? c.name : c.title,
                .subtitle = results.protocol,
                .headlines = headlines_of(results),
                .sections = {},
                .provenance = results.provenance};
  if (wanted(c, "samples")) report.sections.push_back(sample_section(sets, test));
  if (wanted(c, "samples") && !c.model.empty() && c.report_prompts > 0)
    report.sections.push_back(prompt_section(c, sets));
  for (const ResultRow& row : results.rows)
    if (row.metrics.contains("step_compression"))  // the set `samples` of an autoregressive model
      report.sections.push_back(decoding_section(gather_decoding(c, sets), row));
  if (wanted(c, "reconstructions")) report.sections.push_back(reconstruction_section(sets));
  report.sections.push_back(results_section(results));
  for (ReportSection section : {cost_section(results.rows), in_loop_section(results.rows)})
    if (!section.tables.empty()) report.sections.push_back(std::move(section));
  if (results.qualification) report.sections.push_back(qualification_section(*results.qualification));
  if (ReportSection controls = control_section(c, sets); !controls.figures.empty())
    report.sections.push_back(std::move(controls));
  ReportSection latency = latency_section(results.rows);
  if (!latency.tables[0].rows.empty()) report.sections.push_back(std::move(latency));
  if (!c.training_runs.empty()) {
    const std::vector<std::filesystem::path> runs(c.training_runs.begin(), c.training_runs.end());
    report.sections.push_back(training_section(runs));
  }
  report.sections.push_back(timing_section(seconds));
  return report;
}

}  // namespace fewstep::eval
