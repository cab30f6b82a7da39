// Line charts and heat maps as inline SVG for reports: no scripts, readable in light and dark.
#pragma once
#include <string>
#include <vector>

namespace fewstep::io {

struct Series {
  std::string label;
  std::vector<double> x, y;
};
struct PlotOptions {
  std::string title = {}, x_label = {}, y_label = {};
  bool log_y = false, log_x = false;
  bool names = false;  // labels beside each series' last point, which is a dot, in place of a legend
  int width = 560, height = 300;
};
std::string svg_lines(const std::vector<Series>& series, const PlotOptions& options);
// Charts made by the other functions, one under the other in one picture; "" for none.
std::string svg_stack(const std::vector<std::string>& charts);
std::string svg_bars(const std::vector<std::string>& labels, const std::vector<double>& values,
                     const PlotOptions& options);
// values[row][column]; NaN cells are left blank.
std::string svg_heatmap(const std::vector<std::string>& rows, const std::vector<std::string>& columns,
                        const std::vector<std::vector<double>>& values, const PlotOptions& options);

}  // namespace fewstep::io
