// The sections that reports have in common.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "eval/in_loop.h"
#include "eval/report.h"
#include "src/base/error.h"
#include "src/base/json.h"
#include "src/base/text.h"
#include "src/io/svg_plot.h"

namespace fewstep::eval {
namespace fs = std::filesystem;
namespace {

// Columns whose values all carry the same remark or floor say it once, in the heading or under the table.
struct Column {
  std::string note;       // of every value; "" when they differ
  bool one_floor = true;  // every value's floor is the same number, or there is none
  double floor = std::numeric_limits<double>::quiet_NaN();
};

Column column_of(const std::vector<ResultRow>& rows, const std::string& metric) {
  Column column;
  bool first = true;
  for (const ResultRow& row : rows) {
    const auto it = row.metrics.find(metric);
    if (it == row.metrics.end()) continue;
    const Value& v = it->second;
    if (first) column.note = v.note, column.floor = v.floor;
    if (v.note != column.note) column.note.clear();
    if (v.floor != column.floor && !(std::isnan(v.floor) && std::isnan(column.floor))) column.one_floor = false;
    first = false;
  }
  return column;
}

std::string cell(const ResultRow& row, const std::string& metric, const Column& column) {
  const auto it = row.metrics.find(metric);
  if (it == row.metrics.end()) return "-";
  const Value& v = it->second;
  std::string text = format_value(v);
  if (!column.one_floor && std::isfinite(v.floor)) text += fmt::format(" (floor {})", format_number(v.floor));
  if (column.note.empty() && !v.note.empty()) text += fmt::format(" ({})", v.note);
  return text;
}

// One table a group of metrics: those measured by one encoder together.
std::string group_of(const std::string& metric) {
  if (metric.starts_with("attribute_accuracy")) return "Attributes measured in the pixels, against the caption";
  if (metric.starts_with("CLIP")) return "Image and caption";
  if (metric.starts_with("class_accuracy")) return "Image and caption";
  if (metric.starts_with("FD_teacher")) return "Against the teacher's samples of the same captions";
  if (metric.starts_with("FD_difference")) return "Samples against those of the paired evaluation";
  return "Against real images";
}

// Everything a line of metrics.jsonl holds beside the means of the trainer's losses, and means that are no losses.
bool is_loss(std::string_view key) {
  static constexpr std::string_view kOther[] = {"step",
                                                "images",
                                                "seconds",
                                                "epoch",
                                                "units_per_second",
                                                "ms_p50",
                                                "ms_p95",
                                                "data_wait",
                                                "tflops_per_second",
                                                "peak_bytes",
                                                "lr",
                                                "grad_norm",
                                                "perplexity",
                                                "revived",
                                                "logit_scale",
                                                "accuracy",
                                                "retrieval",
                                                "psnr",
                                                "logvar",
                                                "logits_real",
                                                "logits_fake",
                                                "adversarial_weight",
                                                "activation_max",
                                                "activations_above_limit"};
  return std::find(std::begin(kOther), std::end(kOther), key) == std::end(kOther);
}

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

// Of the last training line: where the run stood, how fast it was.
std::vector<std::string> training_row(const std::string& name, const fs::path& path) {
  Json last;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);)
    if (Json j = Json::parse(line, nullptr, false);
        j.is_object() && j.value("group", "train") == "train" && j.contains("step"))
      last = std::move(j);
  if (last.is_null()) return {};
  return {name, std::to_string(last.value("step", int64_t{0})), human_count(last.value("images", 0.0)),
          human_duration(last.value("seconds", 0.0)),
          fmt::format("{:.0f} {}", last.value("units_per_second", 0.0), last.value("unit", "images"))};
}

}  // namespace

ReportSection results_section(const Results& results) {
  ReportSection section{.heading = "Results", .paragraphs = {results.protocol}};
  std::map<std::string, std::vector<std::string>> groups;
  std::vector<std::string> order;
  for (const std::string& metric : metric_names(results.rows)) {
    if (is_generator_metric(metric) || is_in_loop_metric(metric)) continue;  // they have a section of their own
    const std::string group = group_of(metric);
    if (groups[group].empty()) order.push_back(group);
    groups[group].push_back(metric);
  }
  std::sort(order.begin(), order.end());  // "Against real images", "Attributes ...", "Image and caption"
  for (const std::string& group : order) {
    ReportTable table{.title = group, .header = {"images", "N"}, .rows = {}};
    std::vector<Column> columns;
    const bool captions = group == "Image and caption";
    bool any_floor = false;
    std::string floors;
    for (const std::string& metric : groups[group]) {
      columns.push_back(column_of(results.rows, metric));
      const Column& c = columns.back();
      any_floor = any_floor || !c.one_floor || std::isfinite(c.floor);
      table.header.push_back(c.note.empty() ? metric : fmt::format("{} ({})", metric, c.note));
      if (c.one_floor && std::isfinite(c.floor))
        floors += fmt::format("{}{} {}",
                              !floors.empty() ? ", "
                              : captions      ? " Floor: "
                                              : " Floor, real against real at equal N: ",
                              metric.substr(0, metric.find('[')), format_number(c.floor));
    }
    for (const ResultRow& row : results.rows) {
      int64_t n = 0;
      for (const std::string& metric : groups[group])
        if (const auto it = row.metrics.find(metric); it != row.metrics.end()) n = std::max(n, it->second.n);
      if (n == 0) continue;
      std::vector<std::string> cells = {row.label, std::to_string(n)};
      for (size_t m = 0; m < columns.size(); ++m) cells.push_back(cell(row, groups[group][m], columns[m]));
      table.rows.push_back(std::move(cells));
    }
    table.note = "Intervals are 95 %." + (floors.empty() ? "" : floors + ".");
    if (captions && any_floor) table.note += " Floor of CLIPScore: the same images with captions shuffled.";
    section.tables.push_back(std::move(table));
  }
  return section;
}

ReportSection latency_section(const std::vector<ResultRow>& rows) {
  ReportTable table{.header = {"model", "batch", "p50", "p90", "p95", "p99", "first call", "images/s", "steps", "NFE",
                               "tokens/step", "peak memory", "load", "runs"},
                    .rows = {}};
  for (const ResultRow& row : rows) {
    if (row.latency.runs == 0) continue;
    const Latency& l = row.latency;
    const auto duration = [](double s) { return s > 0 ? human_duration(s) : "-"; };
    table.rows.push_back({row.label, std::to_string(l.batch), human_duration(l.p50), duration(l.p90),
                          human_duration(l.p95), duration(l.p99), duration(l.first),
                          format_number(static_cast<double>(l.batch) / l.p50), fmt::format("{:.4g}", row.steps),
                          fmt::format("{:.4g}", row.nfe),
                          row.step_compression > 0 ? format_number(row.step_compression) : "-",
                          l.peak_memory > 0 ? human_count(static_cast<double>(l.peak_memory)) + "B" : "-",
                          l.p90 > 0 ? fmt::format("{:.0f} %", 100 * l.load) : "-", std::to_string(l.runs)});
  }
  table.note =
      "Wall-clock of one call of the whole pipeline, text to pixels, after warm-up. Load: what other work kept "
      "busy of the cores in the minute before.";
  return {.heading = "Latency", .tables = {table}};
}

ReportSection qualification_section(const Qualification& q) {
  ReportSection section{.heading = "Encoder qualification"};
  section.paragraphs.push_back(
      fmt::format("An encoder may judge images only if it ranks image sets of known quality in their order and sees "
                  "more damage as more "
                  "distance. {} {}.",
                  q.encoder, q.passed ? "is qualified" : "is NOT qualified: its distances below are marked"));
  for (const std::string& reason : q.reasons) section.paragraphs.push_back("Reason: " + reason + ".");
  ReportTable ranking{
      .title = "Sets that must be in increasing order", .header = {"images", "N", q.encoder}, .rows = {}};
  for (const RankedSet& r : q.ranking) ranking.rows.push_back({r.label, std::to_string(r.fd.n), format_value(r.fd)});
  section.tables.push_back(std::move(ranking));
  std::vector<io::Series> series;
  for (const DistortionCurve& curve : q.curves) {
    ReportTable table{
        .title = fmt::format("{} ({})", curve.name, curve.unit), .header = {"level"}, .rows = {{"distance"}}};
    io::Series line{curve.name, {}, {}};
    for (size_t i = 0; i < curve.fd.size(); ++i) {
      table.header.push_back(i == 0 ? std::string("none") : fmt::format("{:g}", curve.levels[i - 1]));
      table.rows[0].push_back(format_number(curve.fd[i]));
      line.x.push_back(static_cast<double>(i));
      line.y.push_back(curve.fd[i]);
    }
    series.push_back(std::move(line));
    section.tables.push_back(std::move(table));
  }
  if (!series.empty())
    section.plots.push_back(io::svg_lines(
        series,
        {.title = "Distance against damage", .x_label = "level of damage", .y_label = "distance", .log_y = true}));
  return section;
}

ReportSection training_section(std::span<const fs::path> runs) {
  ReportSection section{.heading = "Training"};
  ReportTable table{.header = {"run", "steps", "images", "time in steps", "per second"}, .rows = {}};
  for (const fs::path& run : runs) {
    const std::string name = run.filename().empty() ? run.parent_path().filename().string() : run.filename().string();
    if (!fs::exists(run / "metrics.jsonl")) {
      section.paragraphs.push_back(fmt::format("{}: no metrics.jsonl.", run.string()));
      continue;
    }
    if (auto row = training_row(name, run / "metrics.jsonl"); !row.empty()) table.rows.push_back(std::move(row));
    std::vector<io::Series> series;
    for (auto& [key, curve] : read_curves(run / "metrics.jsonl"))
      if (curve.x.size() > 1 || key.find('(') != std::string::npos) series.push_back(std::move(curve));
    if (series.empty()) {
      section.paragraphs.push_back(fmt::format("{}: too few lines in metrics.jsonl for a curve.", run.string()));
      continue;
    }
    section.plots.push_back(io::svg_lines(series, {.title = name, .x_label = "step", .y_label = "loss"}));
  }
  if (!table.rows.empty()) section.tables.push_back(std::move(table));
  return section;
}

ReportSection timing_section(const std::vector<std::pair<std::string, double>>& seconds) {
  ReportSection section{.heading = "Time"};
  ReportTable table{.header = {"part", "time", "share"}, .rows = {}};
  double total = 0;
  for (const auto& [part, s] : seconds) total += s;
  for (const auto& [part, s] : seconds)
    if (s >= 0.05)  // the rest is nothing to look at
      table.rows.push_back({part, human_duration(s), fmt::format("{:.0f} %", total > 0 ? 100 * s / total : 0.0)});
  table.rows.push_back({"total", human_duration(total), "100 %"});
  section.tables.push_back(std::move(table));
  return section;
}

}  // namespace fewstep::eval
