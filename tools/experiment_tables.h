// An experiment's outcome as Markdown, CSV, LaTeX, a heat map and results.json, beside the paper's numbers.
#pragma once
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "tools/experiment_runner.h"

namespace fewstep::experiment {

struct Table {
  std::vector<std::string> header;
  std::vector<std::vector<std::string>> rows;
  std::vector<std::string> notes;  // under the table: details of rows, the paper's source
};
// Columns: row, the metrics (each followed by the paper's where it has one), what only the paper has, steps, seconds,
// seeds, status. Rows of the paper that are none of ours come last.
Table make_table(const ExperimentConfig& config, const Outcome& outcome, const PaperConfig* paper);

std::string to_markdown(const Table& table);
std::string to_csv(const Table& table);
std::string to_latex(const Table& table, const std::string& caption);
// Of the first metric over a matrix with two keys; "" otherwise.
std::string heat_map(const ExperimentConfig& config, const Outcome& outcome);
// curve_y over curve_x, a line a row, a point a value of the matrix or an eval job of each_eval (curve_points: a named point a
// row), a panel for each of curve_also; "" without the keys or with nothing to draw.
std::string curve(const ExperimentConfig& config, const Outcome& outcome);
// `now`, where rows that were not run here (no result of theirs) are those of `before`: a table made on several machines or
// days, one row at a time. Both as outcome_json gives them.
Json keep_earlier_rows(Json now, const Json& before);
Json outcome_json(const ExperimentConfig& config, const Outcome& outcome);

// Everything into `folder`: results.json, results.md, results.csv, results.tex, heat_map.svg, curve.svg.
void write_outcome(const std::filesystem::path& folder, const ExperimentConfig& config, const Outcome& outcome,
                   const PaperConfig* paper);

}  // namespace fewstep::experiment
