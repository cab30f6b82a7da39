#include "eval/protocol_report.h"

#include <algorithm>
#include <cmath>

#include "eval/report.h"
#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/log.h"
#include "src/base/text.h"
#include "src/io/image.h"
#include "src/tensor/ops.h"

namespace fewstep::eval {
namespace {

constexpr int64_t kShown = 8, kFirst = 24, kThumbnail = 128;

ReportTable counts_table(const ProtocolReport& r) {
  ReportTable table{
      .title = "What was read", .header = {"side", "images", "one flat colour", "grey", "unreadable"}, .rows = {}};
  for (const ProtocolCounts& c : r.counts)
    table.rows.push_back({c.side, std::to_string(c.images), std::to_string(c.constant), std::to_string(c.grey),
                          std::to_string(c.unreadable)});
  table.note = "Images of one flat colour and grey ones are counted, never left out.";
  if (r.cosines.defined())
    table.note += fmt::format(" Captions longer than the text encoder reads, and cut: {} of {}.", r.truncated_captions,
                              r.prompts.size());
  return table;
}

std::vector<std::string> errors_of(const ProtocolReport& r) {
  constexpr size_t kMost = 20;
  std::vector<std::string> lines;
  for (const ProtocolCounts& c : r.counts)
    for (const std::string& error : c.errors)
      if (lines.size() < kMost) lines.push_back(fmt::format("Left out of the {}: {}", c.side, error));
  return lines;
}

// A square picture of any image, small enough for a page.
Tensor thumbnail(const Tensor& image) {
  const int64_t H = image.size(1), W = image.size(2), side = std::min(H, W);
  Tensor x = io::center_crop(image.size(0) == 1 ? image.expand({3, -1, -1}) : image, side, side).contiguous();
  return side > kThumbnail ? io::resize(x, kThumbnail, kThumbnail) : x;
}

// Samples that cannot be shown (unreadable, of another size than the first) are left out.
ReportFigure pictures(const ProtocolReport& r, const std::vector<int64_t>& places, int64_t columns,
                      std::string caption) {
  std::vector<Tensor> images;
  for (int64_t place : places) {
    try {
      const Tensor image = thumbnail(r.samples.read(static_cast<size_t>(place)));
      if (images.empty() || image.sizes() == images[0].sizes()) images.push_back(image);
    } catch (const DataError&) {
    }
  }
  if (images.empty()) return {.png = {}, .caption = {}};
  return grid_figure(at::stack(images), columns, std::move(caption));
}

ReportSection sample_section(const ProtocolReport& r) {
  ReportSection section{.heading = "Samples"};
  std::vector<int64_t> first;
  for (int64_t i = 0; i < std::min(kFirst, static_cast<int64_t>(r.samples.size())); ++i) first.push_back(i);
  ReportFigure figure = pictures(r, first, 8, "The first prompts of the list, not selected");
  if (!figure.png.empty()) section.figures.push_back(std::move(figure));
  if (!r.cosines.defined()) return section;
  const Tensor order = r.cosines.argsort();  // rising
  const int64_t n = std::min(kShown, order.numel());
  for (const bool best : {true, false}) {
    ReportTable table{.title = fmt::format("{} of {}", best ? "Best" : "Worst", r.clip_name),
                      .header = {"caption id", "cosine", "caption"},
                      .rows = {}};
    std::vector<int64_t> places;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t at = order[best ? order.numel() - 1 - i : i].item<int64_t>();
      places.push_back(r.places[at].item<int64_t>());
      const Prompt& prompt = r.prompts[static_cast<size_t>(places.back())];
      table.rows.push_back(
          {std::to_string(prompt.caption_id), fmt::format("{:.4f}", r.cosines[at].item<double>()), prompt.text});
    }
    section.tables.push_back(std::move(table));
    if (ReportFigure f = pictures(r, places, n, best ? "Best" : "Worst"); !f.png.empty())
      section.figures.push_back(std::move(f));
  }
  return section;
}

}  // namespace

std::string protocol_markdown(const ProtocolReport& r) {
  const ResultRow& row = r.results.rows.front();
  std::string out = fmt::format("# {}\n\n{}\n\n| metric | value | N | remark |\n|---|---|---|---|\n", r.results.name,
                                r.results.protocol);
  for (const auto& [name, v] : row.metrics) {
    std::string remark = v.note;
    if (std::isfinite(v.floor))
      remark += fmt::format("{}captions shuffled: {}", remark.empty() ? "" : "; ", format_number(v.floor));
    out += fmt::format("| {} | {} | {} | {} |\n", name, format_value(v), v.n, remark);
  }
  if (row.steps > 0)
    out += fmt::format("| steps an image | {:.4g} | | |\n| model calls an image (NFE) | {:.4g} | | |\n", row.steps,
                       row.nfe);
  if (row.step_compression > 0)
    out += fmt::format("| step compression (tokens / steps) | {:.4g} | | |\n", row.step_compression);
  if (row.latency.runs > 0)
    out += fmt::format("| latency p50 / p95, batch {} | {} / {} | {} | |\n", row.latency.batch,
                       human_duration(row.latency.p50), human_duration(row.latency.p95), row.latency.runs);
  out += "\n| side | images | one flat colour | grey | unreadable |\n|---|---|---|---|---|\n";
  for (const ProtocolCounts& c : r.counts)
    out += fmt::format("| {} | {} | {} | {} | {} |\n", c.side, c.images, c.constant, c.grey, c.unreadable);
  if (r.cosines.defined())
    out += fmt::format("\n{} of {} captions were cut for the text encoder.\n", r.truncated_captions, r.prompts.size());
  for (const std::string& error : errors_of(r)) out += "\n- " + error;
  return out;
}

void write_protocol_report(const std::filesystem::path& folder, const ProtocolReport& r, bool html) {
  write_text_atomic(folder / "results.md", protocol_markdown(r));
  if (!html) return;
  Report report{.title = r.results.name, .subtitle = r.results.protocol};
  report.sections.push_back(results_section(r.results));
  if (r.results.rows.front().latency.runs > 0) report.sections.push_back(latency_section(r.results.rows));
  report.sections.push_back(sample_section(r));
  report.sections.push_back({.heading = "Images and errors", .paragraphs = errors_of(r), .tables = {counts_table(r)}});
  report.provenance = r.results.provenance;
  write_report(folder / "report.html", report);
}

}  // namespace fewstep::eval
