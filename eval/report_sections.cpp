// The sections that reports have in common.
#include <fstream>
#include <nlohmann/json.hpp>

#include "eval/report.h"
#include "src/base/error.h"
#include "src/base/json.h"
#include "src/base/text.h"
#include "src/io/svg_plot.h"

namespace fewstep::eval {
namespace fs = std::filesystem;
namespace {

std::string cell(const ResultRow& row, const std::string& metric) {
  const auto it = row.metrics.find(metric);
  if (it == row.metrics.end()) return "-";
  return it->second.note.empty() ? format_value(it->second) : format_value(it->second) + " (" + it->second.note + ")";
}

// One table a group of metrics: those measured by one encoder together.
std::string group_of(const std::string& metric) {
  if (metric.starts_with("attribute_accuracy")) return "Attributes measured in the pixels, against the caption";
  if (metric.starts_with("CLIP")) return "Image and caption";
  if (metric.starts_with("class_accuracy")) return "Image and caption";
  return "Against real images";
}

// "loss", "loss_commit", "validation loss": what a training curve shows. Rates, timings and counts are left out.
bool is_loss(const std::string& key) { return key.find("loss") != std::string::npos || key.find("nats") != std::string::npos; }

// name -> curve, from the lines of one metrics.jsonl; a torn last line (the run was killed) is ignored.
std::map<std::string, io::Series> read_curves(const fs::path& path) {
  std::map<std::string, io::Series> curves;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const Json j = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!j.is_object() || !j.contains("step") || !j["step"].is_number()) continue;
    const std::string group = j.value("group", "train");
    for (const auto& [key, value] : j.items()) {
      if (!value.is_number() || !is_loss(key)) continue;
      io::Series& series = curves[group == "train" ? key : key + " (" + group + ")"];
      series.x.push_back(j["step"].get<double>());
      series.y.push_back(value.get<double>());
    }
  }
  for (auto& [name, series] : curves) series.label = name;
  return curves;
}

}  // namespace

ReportSection results_section(const Results& results) {
  ReportSection section{.heading = "Results", .paragraphs = {results.protocol}};
  std::map<std::string, std::vector<std::string>> groups;
  std::vector<std::string> order;
  for (const std::string& metric : metric_names(results.rows)) {
    const std::string group = group_of(metric);
    if (groups[group].empty()) order.push_back(group);
    groups[group].push_back(metric);
  }
  for (const std::string& group : order) {
    ReportTable table{.title = group, .header = {"images", "N"}, .rows = {}};
    for (const std::string& metric : groups[group]) table.header.push_back(metric);
    for (const ResultRow& row : results.rows) {
      int64_t n = 0;
      for (const std::string& metric : groups[group])
        if (const auto it = row.metrics.find(metric); it != row.metrics.end()) n = std::max(n, it->second.n);
      if (n == 0) continue;
      std::vector<std::string> cells = {row.label, std::to_string(n)};
      for (const std::string& metric : groups[group]) cells.push_back(cell(row, metric));
      table.rows.push_back(std::move(cells));
    }
    std::string floors;
    for (const std::string& metric : groups[group])
      for (const ResultRow& row : results.rows)
        if (const auto it = row.metrics.find(metric); it != row.metrics.end() && std::isfinite(it->second.floor))
          floors += fmt::format("{}{} of {}: {}", floors.empty() ? "Floors: " : "; ", metric, row.label, format_number(it->second.floor));
    table.note = "Intervals are 95 %." + (floors.empty() ? "" : " " + floors + ".");
    section.tables.push_back(std::move(table));
  }
  return section;
}

ReportSection latency_section(const std::vector<ResultRow>& rows) {
  ReportTable table{.header = {"model", "batch", "p50", "p95", "images/s", "steps", "NFE", "tokens/step", "runs"}, .rows = {}};
  for (const ResultRow& row : rows) {
    if (row.latency.runs == 0) continue;
    const Latency& l = row.latency;
    table.rows.push_back({row.label, std::to_string(l.batch), human_duration(l.p50), human_duration(l.p95),
                          format_number(static_cast<double>(l.batch) / l.p50), std::to_string(row.steps), std::to_string(row.nfe),
                          row.step_compression > 0 ? format_number(row.step_compression) : "-", std::to_string(l.runs)});
  }
  table.note = "Wall-clock of one call of the whole pipeline, text to pixels, after warm-up.";
  return {.heading = "Latency", .tables = {table}};
}

ReportSection qualification_section(const Qualification& q) {
  ReportSection section{.heading = "Encoder qualification"};
  section.paragraphs.push_back(fmt::format(
      "An encoder may judge images only if it ranks image sets of known quality in their order and sees more damage as more "
      "distance. {} {}.", q.encoder, q.passed ? "is qualified" : "is NOT qualified: its distances below are marked"));
  for (const std::string& reason : q.reasons) section.paragraphs.push_back("Reason: " + reason + ".");
  ReportTable ranking{.title = "Sets that must be in increasing order", .header = {"images", "N", q.encoder}, .rows = {}};
  for (const RankedSet& r : q.ranking) ranking.rows.push_back({r.label, std::to_string(r.fd.n), format_value(r.fd)});
  section.tables.push_back(std::move(ranking));
  std::vector<io::Series> series;
  for (const DistortionCurve& curve : q.curves) {
    ReportTable table{.title = fmt::format("{} ({})", curve.name, curve.unit), .header = {"level"}, .rows = {{"distance"}}};
    io::Series line{curve.name, {}, {}};
    for (size_t i = 0; i < curve.fd.size(); ++i) {
      table.header.push_back(i == 0 ? "none" : format_number(curve.levels[i - 1]));
      table.rows[0].push_back(format_number(curve.fd[i]));
      line.x.push_back(static_cast<double>(i));
      line.y.push_back(curve.fd[i]);
    }
    series.push_back(std::move(line));
    section.tables.push_back(std::move(table));
  }
  if (!series.empty())
    section.plots.push_back(io::svg_lines(series, {.title = "Distance against damage", .x_label = "level of damage",
                                                   .y_label = "distance", .log_y = true}));
  return section;
}

ReportSection training_section(std::span<const fs::path> runs) {
  ReportSection section{.heading = "Training"};
  for (const fs::path& run : runs) {
    const std::string name = run.filename().empty() ? run.parent_path().filename().string() : run.filename().string();
    if (!fs::exists(run / "metrics.jsonl")) {
      section.paragraphs.push_back(fmt::format("{}: no metrics.jsonl.", run.string()));
      continue;
    }
    std::vector<io::Series> series;
    for (auto& [key, curve] : read_curves(run / "metrics.jsonl"))
      if (curve.x.size() > 1 || key.find('(') != std::string::npos) series.push_back(std::move(curve));
    if (series.empty()) {
      section.paragraphs.push_back(fmt::format("{}: metrics.jsonl has no losses.", run.string()));
      continue;
    }
    section.plots.push_back(io::svg_lines(series, {.title = name, .x_label = "step", .y_label = "loss"}));
  }
  return section;
}

ReportSection timing_section(const std::vector<std::pair<std::string, double>>& seconds) {
  ReportSection section{.heading = "Time"};
  ReportTable table{.header = {"part", "time", "share"}, .rows = {}};
  double total = 0;
  for (const auto& [part, s] : seconds) total += s;
  for (const auto& [part, s] : seconds)
    table.rows.push_back({part, human_duration(s), fmt::format("{:.0f} %", total > 0 ? 100 * s / total : 0.0)});
  table.rows.push_back({"total", human_duration(total), "100 %"});
  section.tables.push_back(std::move(table));
  return section;
}

}  // namespace fewstep::eval
