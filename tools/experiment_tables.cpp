#include "tools/experiment_tables.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/json.h"
#include "src/base/text.h"
#include "src/io/svg_plot.h"

namespace fewstep::experiment {
namespace {

// The metrics shown: for each of `columns` the one of that name, or else those that begin with it; all when it is
// empty.
std::vector<std::string> metrics_shown(const ExperimentConfig& c, const Outcome& outcome) {
  std::vector<eval::ResultRow> rows;
  for (const RowOutcome& row : outcome.rows) rows.push_back(row.result);
  const std::vector<std::string> all = eval::metric_names(rows);
  if (c.columns.empty()) return all;
  std::vector<std::string> shown;
  for (const std::string& wanted : c.columns) {
    const bool exact = std::find(all.begin(), all.end(), wanted) != all.end();
    for (const std::string& name : all)
      if ((exact ? name == wanted : name.starts_with(wanted)) &&
          std::find(shown.begin(), shown.end(), name) == shown.end())
        shown.push_back(name);
  }
  return shown;
}

// A name of the paper's stands for a metric of that name, or of that name before the encoder in brackets.
bool stands_for(const std::string& paper, const std::string& metric) {
  return paper == metric || (metric.find('@') != std::string::npos && paper == metric.substr(0, metric.find('[')));
}

// The paper's text for a row and metric.
std::optional<std::string> paper_number(const PaperConfig* paper, const std::string& row, const std::string& metric) {
  if (!paper) return std::nullopt;
  for (const PaperRow& p : paper->rows)
    if (p.label == row)
      for (const auto& [name, text] : p.metrics)
        if (stands_for(name, metric))  // text that YAML has to quote ("-") comes with its quotes
          return text.size() > 1 && text.front() == '"' && text.back() == '"' ? text.substr(1, text.size() - 2) : text;
  return std::nullopt;
}

// What the paper reports and no column of ours stands for, first seen first: its FID of Inception features, its
// latencies.
std::vector<std::string> paper_only_metrics(const PaperConfig* paper, const std::vector<std::string>& metrics) {
  std::vector<std::string> names;
  if (!paper) return names;
  for (const PaperRow& p : paper->rows)
    for (const auto& [name, text] : p.metrics) {
      const bool beside_ours = std::any_of(metrics.begin(), metrics.end(),
                                           [&, n = name](const std::string& metric) { return stands_for(n, metric); });
      if (!beside_ours && std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
    }
  return names;
}

std::string ours(const RowOutcome& row, const std::string& metric) {
  const auto it = row.result.metrics.find(metric);
  if (it == row.result.metrics.end()) return "-";
  return eval::format_value(it->second) + (it->second.note.empty() ? "" : " (" + it->second.note + ")");
}

std::string escape_latex(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (text.compare(i, 2, "\u00b1") == 0) {
      out += "$\\pm$", ++i;
    } else if (std::string_view("&%$#_{}").find(c) != std::string_view::npos) {
      out += '\\', out += c;
    } else if (c == '~' || c == '^') {
      out += fmt::format("\\{}{{}}", c);
    } else if (c == '\\') {
      out += "\\textbackslash{}";
    } else {
      out += c;
    }
  }
  return out;
}

std::string joined(const std::vector<std::string>& cells, std::string_view separator) {
  std::string out;
  for (size_t i = 0; i < cells.size(); ++i) out += (i ? std::string(separator) : "") + cells[i];
  return out;
}

// Numbers of two protocols in one table would be read as if they could be compared.
void check_one_protocol(const Outcome& outcome) {
  const RowOutcome* first = nullptr;
  for (const RowOutcome& row : outcome.rows) {
    if (row.result.protocol.empty()) continue;
    if (!first) first = &row;
    if (row.result.protocol != first->result.protocol)
      fail<ConfigError>("row '{}' was measured by {}, row '{}' by {}: one table has one protocol", first->label,
                        first->result.protocol, row.label, row.result.protocol);
  }
}

}  // namespace

Table make_table(const ExperimentConfig& c, const Outcome& outcome, const PaperConfig* paper) {
  check_one_protocol(outcome);
  Table table{.header = {"row"}, .rows = {}, .notes = {}};
  const std::vector<std::string> metrics = metrics_shown(c, outcome);
  std::vector<bool> with_paper;
  for (const std::string& metric : metrics) {
    table.header.push_back(metric);
    with_paper.push_back(paper && std::any_of(paper->rows.begin(), paper->rows.end(), [&](const PaperRow& p) {
                           return paper_number(paper, p.label, metric).has_value();
                         }));
    if (with_paper.back()) table.header.push_back(metric.substr(0, metric.find('[')) + " (paper)");
  }
  const std::vector<std::string> only_paper = paper_only_metrics(paper, metrics);
  for (const std::string& name : only_paper) table.header.push_back(name + " (paper)");
  table.header.insert(table.header.end(), {"steps", "NFE", "latency p50", "seeds", "time", "status"});
  const auto start = [&](const std::string& label, const RowOutcome* row) {
    std::vector<std::string> cells = {label};
    for (size_t m = 0; m < metrics.size(); ++m) {
      cells.push_back(row ? ours(*row, metrics[m]) : "-");
      if (with_paper[m]) cells.push_back(paper_number(paper, label, metrics[m]).value_or("-"));
    }
    for (const std::string& name : only_paper) cells.push_back(paper_number(paper, label, name).value_or("-"));
    return cells;
  };
  std::set<std::string> known;
  for (const RowOutcome& row : outcome.rows) {
    std::vector<std::string> cells = start(row.label, &row);
    const eval::ResultRow& r = row.result;
    cells.push_back(r.steps > 0 ? fmt::format("{:.4g}", r.steps) : "-");
    cells.push_back(r.nfe > 0 ? fmt::format("{:.4g}", r.nfe) : "-");
    cells.push_back(r.latency.runs > 0 ? human_duration(r.latency.p50) : "-");
    cells.push_back(r.seeds.empty() ? "-" : std::to_string(r.seeds.size()));
    cells.push_back(row.seconds > 0 ? human_duration(row.seconds) : "-");
    cells.push_back(std::string(status_name(row.status)));
    table.rows.push_back(std::move(cells));
    if (!row.detail.empty()) table.notes.push_back(fmt::format("{}: {}", row.label, row.detail));
    known.insert(row.label);
  }
  for (const PaperRow& p : paper ? paper->rows : std::vector<PaperRow>{}) {  // rows that nobody here runs
    if (known.contains(p.label)) continue;
    std::vector<std::string> cells = start(p.label, nullptr);
    cells.insert(cells.end(), {"-", "-", "-", "-", "-", "paper only"});
    table.rows.push_back(std::move(cells));
  }
  if (paper && !paper->source.empty()) table.notes.push_back("Paper: " + paper->source);
  return table;
}

std::string to_markdown(const Table& table) {
  const auto line = [](const std::vector<std::string>& cells) {
    std::string out = "|";
    for (std::string cell : cells) {
      for (size_t i = 0; (i = cell.find('|', i)) != std::string::npos; i += 2) cell.insert(i, "\\");
      out += " " + cell + " |";
    }
    return out + "\n";
  };
  std::string out = line(table.header);
  out += "|" + joined(std::vector<std::string>(table.header.size(), "---"), "|") + "|\n";
  for (const auto& row : table.rows) out += line(row);
  for (const std::string& note : table.notes) out += "\n- " + note;
  return out + (table.notes.empty() ? "" : "\n");
}

std::string to_csv(const Table& table) {
  const auto line = [](const std::vector<std::string>& cells) {  // RFC 4180
    std::vector<std::string> quoted;
    for (const std::string& cell : cells) {
      if (cell.find_first_of(",\"\n") == std::string::npos) {
        quoted.push_back(cell);
        continue;
      }
      std::string q = "\"";
      for (char ch : cell) q += ch == '"' ? std::string("\"\"") : std::string(1, ch);
      quoted.push_back(q + "\"");
    }
    return joined(quoted, ",") + "\n";
  };
  std::string out = line(table.header);
  for (const auto& row : table.rows) out += line(row);
  return out;
}

std::string to_latex(const Table& table, const std::string& caption) {
  const auto line = [](const std::vector<std::string>& cells) {
    std::vector<std::string> escaped;
    for (const std::string& cell : cells) escaped.push_back(escape_latex(cell));
    return joined(escaped, " & ") + " \\\\\n";
  };
  std::string out = "\\begin{table}\n\\centering\n\\caption{" + escape_latex(caption) + "}\n\\begin{tabular}{l" +
                    std::string(table.header.size() - 1, 'r') + "}\n\\toprule\n" + line(table.header) + "\\midrule\n";
  for (const auto& row : table.rows) out += line(row);
  return out + "\\bottomrule\n\\end{tabular}\n\\end{table}\n";
}

std::string heat_map(const ExperimentConfig& c, const Outcome& outcome) {
  const std::vector<std::string> metrics = metrics_shown(c, outcome);
  if (c.matrix.size() != 2 || metrics.empty()) return "";
  const std::vector<std::string> down = flow_items(c.matrix[0].second), across = flow_items(c.matrix[1].second);
  std::vector<std::vector<double>> values(down.size(),
                                          std::vector<double>(across.size(), std::numeric_limits<double>::quiet_NaN()));
  const std::string& first_row = c.rows[0].label;  // one map a row label; the first is drawn
  if (!c.rows[0].matrix.empty()) return "";
  for (const RowOutcome& row : outcome.rows) {
    if (!row.label.starts_with(first_row + ", ")) continue;
    const auto it = row.result.metrics.find(metrics[0]);
    if (it == row.result.metrics.end()) continue;
    const auto y = std::find(down.begin(), down.end(), row.point[0].second) - down.begin();
    const auto x = std::find(across.begin(), across.end(), row.point[1].second) - across.begin();
    values[static_cast<size_t>(y)][static_cast<size_t>(x)] = it->second.value;
  }
  return io::svg_heatmap(down, across, values,
                         {.title = metrics[0], .x_label = c.matrix[1].first, .y_label = c.matrix[0].first});
}

namespace {

// A line a row of the config (its matrix points or eval jobs), or with curve_points a point a row of the outcome.
std::vector<io::Series> curve_series(const ExperimentConfig& c, const Outcome& outcome, const std::string& x, const std::string& y) {
  std::vector<io::Series> series;
  const auto add = [&](io::Series& line, const RowOutcome& point) {
    const auto &values = point.result.metrics;
    const auto at_x = values.find(x), at_y = values.find(y);
    if (at_x == values.end() || at_y == values.end()) return;
    line.x.push_back(at_x->second.value), line.y.push_back(at_y->second.value);
  };
  if (c.curve_points) {
    for (const RowOutcome& point : outcome.rows) {
      series.push_back({.label = point.label, .x = {}, .y = {}});
      add(series.back(), point);
      if (series.back().x.empty()) series.pop_back();
    }
    return series;
  }
  for (const RowConfig& row : c.rows) {
    io::Series line{.label = row.label, .x = {}, .y = {}};
    for (const RowOutcome& point : outcome.rows)
      if (point.label == row.label || point.label.starts_with(row.label + ", ") || point.label.starts_with(row.label + "; "))
        add(line, point);
    if (line.x.size() > 1) series.push_back(std::move(line));
  }
  return series;
}

}  // namespace

std::string curve(const ExperimentConfig& c, const Outcome& outcome) {
  if (c.curve_x.empty()) return "";
  std::vector<eval::ResultRow> results;
  for (const RowOutcome& row : outcome.rows) results.push_back(row.result);
  const std::vector<std::string> names = eval::metric_names(results);
  const auto metric = [&](const std::string& wanted) {
    const auto it = std::find_if(names.begin(), names.end(), [&](const std::string& n) { return n.starts_with(wanted); });
    return it == names.end() ? std::string() : *it;
  };
  std::vector<std::string> wanted = {c.curve_x}, panels;
  wanted.insert(wanted.end(), c.curve_also.begin(), c.curve_also.end());
  const std::string y = metric(c.curve_y);
  for (const std::string& w : wanted) {
    const std::string x = metric(w);
    const std::vector<io::Series> series = curve_series(c, outcome, x, y);
    if (series.empty()) continue;
    panels.push_back(io::svg_lines(series, {.title = panels.empty() ? c.name : "", .x_label = x, .y_label = y, .log_y = c.curve_points,
                                            .log_x = c.curve_points, .names = c.curve_points, .height = c.curve_points ? 380 : 300}));
  }
  return io::svg_stack(panels);
}

Json outcome_json(const ExperimentConfig& c, const Outcome& outcome) {
  eval::Results results;
  results.name = c.name;
  results.protocol = c.question;
  for (const RowOutcome& row : outcome.rows) {
    results.rows.push_back(row.result);
    results.rows.back().label = row.label;
  }
  results.provenance = eval::collect_provenance();
  Json json = eval::to_json(results);
  for (size_t i = 0; i < outcome.rows.size(); ++i) {
    const RowOutcome& row = outcome.rows[i];
    Json& j = json["rows"][i];
    j["scale"] = row.scale == Scale::full ? "full" : "tiny";
    j["status"] = status_name(row.status);
    if (!row.detail.empty()) j["detail"] = row.detail;
    for (const auto& [key, value] : row.point) j["matrix"][key] = value;
    j["total_seconds"] = row.seconds;
  }
  return json;
}

Json keep_earlier_rows(Json now, const Json& before) {
  if (!before.is_object() || !before.contains("rows")) return now;
  for (Json& row : now["rows"]) {
    if (row["status"] == status_name(Status::done)) continue;
    for (const Json& earlier : before["rows"])
      if (earlier.value("label", "") == row["label"] && earlier.value("status", "") == status_name(Status::done)) row = earlier;
  }
  return now;
}

void write_outcome(const std::filesystem::path& folder, const ExperimentConfig& c, const Outcome& outcome,
                   const PaperConfig* paper) {
  make_directories(folder);
  const Table table = make_table(c, outcome, paper);
  write_json(folder / "results.json", outcome_json(c, outcome));
  write_text_atomic(folder / "results.md", fmt::format("# {}\n\n{}\n\n{}", c.name, c.question, to_markdown(table)));
  write_text_atomic(folder / "results.csv", to_csv(table));
  write_text_atomic(folder / "results.tex", to_latex(table, c.question.empty() ? c.name : c.question));
  if (const std::string svg = heat_map(c, outcome); !svg.empty()) write_text_atomic(folder / "heat_map.svg", svg);
  if (const std::string svg = curve(c, outcome); !svg.empty()) write_text_atomic(folder / "curve.svg", svg);
}

}  // namespace fewstep::experiment
