// report.html: one self-contained file (no scripts, nothing fetched) for eval runs, the quickstart and experiments.
#pragma once
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "eval/results.h"
#include "src/tensor/tensor.h"

namespace fewstep::eval {

struct ReportTable {
  std::string title = {};
  std::vector<std::string> header;
  std::vector<std::vector<std::string>> rows;  // the first cell names the row
  std::string note = {};
};
struct ReportFigure {
  std::string png;  // encoded bytes
  std::string caption;
};
struct ReportSection {
  std::string heading;
  std::vector<std::string> paragraphs = {};
  std::vector<ReportTable> tables = {};
  std::vector<std::string> plots = {};     // inline SVG
  std::vector<ReportFigure> figures = {};  // side by side as far as there is room
};
// A number at the top of the page: label, value, what it means or compares with.
struct ReportHeadline {
  std::string label, value, detail;
  bool good = true;
};
struct Report {
  std::string title, subtitle;
  std::vector<ReportHeadline> headlines = {};
  std::vector<ReportSection> sections = {};
  Facts provenance = {};
};

std::string render(const Report& report);
void write_report(const std::filesystem::path& path, const Report& report);

// Every metric of every row, with N, floors and intervals.
ReportSection results_section(const Results& results);
ReportSection latency_section(const std::vector<ResultRow>& rows);
ReportSection qualification_section(const Qualification& qualification);
// Loss curves, one plot per training run that has a metrics.jsonl; runs without one are named in a paragraph.
ReportSection training_section(std::span<const std::filesystem::path> runs);
// Where the time went: a bar per part.
ReportSection timing_section(const std::vector<std::pair<std::string, double>>& seconds);

// uint8 [N, C, H, W] -> one figure, each pixel enlarged so that small photographs can be judged.
ReportFigure grid_figure(const Tensor& images, int64_t columns, std::string caption);

}  // namespace fewstep::eval
