#include "src/io/svg_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "src/base/text.h"

namespace fewstep::io {
namespace {

// Okabe-Ito: told apart with colour-blind eyes, readable on white and on dark. A page may set --few-1 ... --few-8.
constexpr const char* kColours[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                    "#e69f00", "#56b4e9", "#8a6d3b", "#7570b3"};
std::string colour(size_t i) { return fmt::format("var(--few-{}, {})", i % 8 + 1, kColours[i % 8]); }

struct Range {
  double low = std::numeric_limits<double>::infinity(), high = -std::numeric_limits<double>::infinity();
  void add(double v) {
    low = std::min(low, v);
    high = std::max(high, v);
  }
  bool empty() const { return low > high; }
};

// A step of 1, 2 or 5 times a power of ten that gives about `count` intervals.
double nice_step(double span, int count) {
  const double raw = span / count, power = std::pow(10.0, std::floor(std::log10(raw))), fraction = raw / power;
  return power * (fraction <= 1.0 ? 1.0 : fraction <= 2.0 ? 2.0 : fraction <= 5.0 ? 5.0 : 10.0);
}

// Constant and empty data get a range with some width; huge ones stay finite.
Range widened(Range r) {
  constexpr double kLimit = 1e300;
  if (r.empty()) return {0.0, 1.0};
  r.low = std::clamp(r.low, -kLimit, kLimit);
  r.high = std::clamp(r.high, -kLimit, kLimit);
  const double size = std::max(std::abs(r.low), std::abs(r.high));
  if (r.high - r.low > 1e-12 * size) return r;
  const double pad = size > 0 ? 0.1 * size : 0.5;
  return {r.low - pad, r.high + pad};
}

std::string label_of(double v, double step) {
  if (std::abs(v) < 1e-9 * step) return "0";
  const double size = std::abs(v);
  if (size >= 1e6 || size < 1e-3) return fmt::format("{:.3g}", v);
  const int digits = std::clamp(static_cast<int>(std::ceil(-std::log10(step) - 1e-9)), 0, 6);
  return fmt::format("{:.{}f}", v, digits);
}

// At most n bytes, never half a UTF-8 character.
std::string clipped(const std::string& text, size_t n) {
  if (text.size() <= n) return text;
  while (n > 0 && (static_cast<unsigned char>(text[n]) & 0xc0) == 0x80) --n;
  return text.substr(0, n) + ".";
}

struct Axis {
  Range range;  // of the plotted quantity (log10 when logarithmic)
  std::vector<std::pair<double, std::string>> ticks;
  double from = 0, to = 1;  // pixels
  double at(double v) const { return from + (v - range.low) / (range.high - range.low) * (to - from); }
};

Axis linear_axis(Range r, int count, bool round_out) {
  Axis axis;
  axis.range = widened(r);
  const double step = nice_step(axis.range.high - axis.range.low, count);
  if (round_out)
    axis.range = {std::floor(axis.range.low / step + 1e-9) * step, std::ceil(axis.range.high / step - 1e-9) * step};
  const double first = std::ceil(axis.range.low / step - 1e-9);
  for (int i = 0; i <= 2 * count + 2; ++i) {
    const double v = (first + i) * step;
    if (v > axis.range.high + 1e-9 * step) break;
    axis.ticks.emplace_back(v, label_of(v, step));
  }
  return axis;
}

// Range in log10; ticks at powers of ten, and at 2 and 5 when there are few of them.
Axis log_axis(Range r) {
  Axis axis;
  axis.range = r.empty() ? Range{-1.0, 0.0} : r;
  if (axis.range.high - axis.range.low < 1e-9) axis.range = {axis.range.low - 0.5, axis.range.high + 0.5};
  axis.range = {std::max(axis.range.low, -307.0), std::min(axis.range.high, 308.0)};  // labels stay finite
  const double span = axis.range.high - axis.range.low, every = std::max(1.0, std::ceil(span / 6));
  for (double power = std::floor(axis.range.low); power <= axis.range.high; power += every) {
    for (const double factor : {1.0, 2.0, 5.0}) {
      const double v = power + std::log10(factor);
      if ((factor != 1.0 && span > 2.5) || v < axis.range.low - 1e-9 || v > axis.range.high + 1e-9) continue;
      axis.ticks.emplace_back(v, fmt::format("{:.3g}", factor * std::pow(10.0, power)));
    }
  }
  return axis;
}

std::string text_at(double x, double y, const char* anchor, std::string_view text, std::string_view extra = "") {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\"{}>{}</text>\n", x, y, anchor, extra,
                     escape_html(text));
}

std::string open_svg(const PlotOptions& o, int width, int height) {
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" role=\"img\" "
      "font-family=\"system-ui, sans-serif\" font-size=\"11\" fill=\"currentColor\" "
      "style=\"max-width:100%;height:auto\">\n",
      width, height);
  if (!o.title.empty()) {
    out += fmt::format("<title>{}</title>\n", escape_html(o.title));
    out += text_at(width / 2.0, 16, "middle", o.title, " font-size=\"13\" font-weight=\"600\"");
  }
  return out;
}

// Plot area between margins, with grid lines, tick labels and axis names.
struct Frame {
  double left = 58, right = 14, top = 28, bottom = 42;
  double width = 0, height = 0;
};

std::string y_grid(const Frame& f, const Axis& y, const PlotOptions& o) {
  std::string out;
  for (const auto& [v, label] : y.ticks) {
    out += fmt::format(
        "<line x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"currentColor\" "
        "stroke-opacity=\"0.15\"/>\n",
        f.left, f.width - f.right, y.at(v), y.at(v));
    out += text_at(f.left - 6, y.at(v) + 4, "end", label);
  }
  const double middle = (f.top + f.height - f.bottom) / 2;
  if (!o.y_label.empty())
    out += text_at(0, 0, "middle", o.y_label, fmt::format(" transform=\"translate(13 {:.1f}) rotate(-90)\"", middle));
  if (!o.x_label.empty()) out += text_at((f.left + f.width - f.right) / 2, f.height - 8, "middle", o.x_label);
  out += fmt::format(
      "<path d=\"M{:.1f} {:.1f}V{:.1f}H{:.1f}\" fill=\"none\" stroke=\"currentColor\" stroke-opacity=\"0.6\"/>\n",
      f.left, f.top, f.height - f.bottom, f.width - f.right);
  return out;
}

bool drawable(double x, double y, const PlotOptions& o) {
  return std::isfinite(x) && std::isfinite(y) && (!o.log_y || y > 0) && (!o.log_x || x > 0);
}

// Gaps where a value is missing; single points become dots.
std::string draw_series(const Series& s, const Axis& x, const Axis& y, const PlotOptions& o, const std::string& stroke) {
  std::string path, dots, name;
  const size_t n = std::min(s.x.size(), s.y.size());
  size_t run = 0;
  double px = 0, py = 0;
  const auto end_run = [&] {
    if (run == 1) dots += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"2.5\" fill=\"{}\"/>\n", px, py, stroke);
    run = 0;
  };
  for (size_t i = 0; i < n; ++i) {
    if (!drawable(s.x[i], s.y[i], o)) {
      end_run();
      continue;
    }
    px = x.at(o.log_x ? std::log10(s.x[i]) : s.x[i]);
    py = y.at(o.log_y ? std::log10(s.y[i]) : s.y[i]);
    path += fmt::format("{}{:.1f} {:.1f}", run++ == 0 ? 'M' : 'L', px, py);
  }
  end_run();
  if (path.empty()) return dots;
  if (o.names) {  // towards the middle of the chart
    const bool left = px > 0.5 * (x.from + x.to);
    name = fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4\" fill=\"{}\"/>\n", px, py, stroke) +
           text_at(px + (left ? -7 : 7), py + 4, left ? "end" : "start", s.label);
  }
  return fmt::format("<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.6\" stroke-linejoin=\"round\"/>\n",
                     path, stroke) +
         dots + name;
}

std::string legend(const std::vector<Series>& series, const Frame& f, double y) {
  std::string out;
  double x = f.left;
  for (size_t i = 0; i < series.size(); ++i) {
    if (series[i].label.empty()) continue;
    out +=
        fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"14\" height=\"3\" fill=\"{}\"/>\n", x, y - 5, colour(i));
    out += text_at(x + 18, y, "start", series[i].label);
    x += 18 + 6.2 * static_cast<double>(series[i].label.size()) + 14;
    if (x > f.width - 120) x = f.left, y += 14;
  }
  return out;
}

int legend_rows(const std::vector<Series>& series, const Frame& f) {
  int rows = 0;
  double x = f.width;
  for (const Series& s : series) {
    if (s.label.empty()) continue;
    if (x > f.width - 120) x = f.left, ++rows;
    x += 32 + 6.2 * static_cast<double>(s.label.size());
  }
  return rows;
}

std::string number_label(double v) {
  return std::abs(v) >= 1e5 || (v != 0 && std::abs(v) < 1e-3) ? fmt::format("{:.2e}", v) : fmt::format("{:.4g}", v);
}

}  // namespace

std::string svg_lines(const std::vector<Series>& series, const PlotOptions& o) {
  Range rx, ry;
  for (const Series& s : series)
    for (size_t i = 0; i < std::min(s.x.size(), s.y.size()); ++i)
      if (drawable(s.x[i], s.y[i], o)) rx.add(o.log_x ? std::log10(s.x[i]) : s.x[i]), ry.add(o.log_y ? std::log10(s.y[i]) : s.y[i]);
  Frame f;
  f.width = o.width;
  const int rows = o.names ? 0 : legend_rows(series, f);
  f.top += 14 * rows;
  f.height = o.height + 14 * rows;
  Axis x = o.log_x ? log_axis(rx) : linear_axis(rx, 6, false), y = o.log_y ? log_axis(ry) : linear_axis(ry, 5, true);
  x.from = f.left, x.to = f.width - f.right;
  y.from = f.height - f.bottom, y.to = f.top;
  std::string out = open_svg(o, o.width, static_cast<int>(f.height));
  if (!o.names) out += legend(series, f, 32);
  out += y_grid(f, y, o);
  for (const auto& [v, label] : x.ticks) {
    out += fmt::format(
        "<line x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1:.1f}\" y2=\"{2:.1f}\" stroke=\"currentColor\" "
        "stroke-opacity=\"0.08\"/>\n",
        x.at(v), f.top, f.height - f.bottom);
    out += text_at(x.at(v), f.height - f.bottom + 15, "middle", label);
  }
  if (ry.empty())
    out += text_at((f.left + f.width) / 2, (f.top + f.height) / 2, "middle", "no data", " fill-opacity=\"0.6\"");
  for (size_t i = 0; i < series.size(); ++i) out += draw_series(series[i], x, y, o, colour(i));
  return out + "</svg>\n";
}

std::string svg_stack(const std::vector<std::string>& charts) {
  if (charts.size() < 2) return charts.empty() ? "" : charts[0];
  const auto side = [](const std::string& chart, std::string_view name) {  // of open_svg
    const size_t at = chart.find(fmt::format(" {}=\"", name));
    return at == std::string::npos ? 0 : std::atoi(chart.c_str() + at + name.size() + 3);
  };
  int width = 0, height = 0;
  std::string inside;
  for (const std::string& chart : charts) {
    std::string placed = chart;
    placed.insert(4, fmt::format(" y=\"{}\"", height));
    width = std::max(width, side(chart, "width")), height += side(chart, "height");
    inside += placed;
  }
  return fmt::format("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" "
                     "style=\"max-width:100%;height:auto\">\n{2}</svg>\n", width, height, inside);
}

std::string svg_bars(const std::vector<std::string>& labels, const std::vector<double>& values, const PlotOptions& o) {
  const size_t n = std::min(labels.size(), values.size());
  Range r;
  r.add(0.0);
  for (size_t i = 0; i < n; ++i)
    if (std::isfinite(values[i])) r.add(values[i]);
  Frame f;
  f.width = o.width, f.height = o.height;
  Axis y = linear_axis(r, 5, true);
  y.from = f.height - f.bottom, y.to = f.top;
  std::string out = open_svg(o, o.width, o.height) + y_grid(f, y, o);
  const double slot = (f.width - f.left - f.right) / static_cast<double>(std::max<size_t>(n, 1)),
               thick = std::min(0.7 * slot, 60.0);
  const auto most = static_cast<size_t>(std::max(3.0, slot / 6.2));  // characters that fit under a bar
  for (size_t i = 0; i < n; ++i) {
    const double middle = f.left + slot * (static_cast<double>(i) + 0.5);
    out += text_at(middle, f.height - f.bottom + 15, "middle", clipped(labels[i], most));
    if (!std::isfinite(values[i])) continue;
    const double a = y.at(0.0), b = y.at(values[i]);
    out += fmt::format(
        "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"{}\"><title>{}: {}</title></rect>\n",
        middle - thick / 2, std::min(a, b), thick, std::abs(a - b), colour(0), escape_html(labels[i]),
        number_label(values[i]));
    out += text_at(middle, std::min(a, b) - 4, "middle", number_label(values[i]));
  }
  if (n == 0) out += text_at((f.left + f.width) / 2, f.height / 2, "middle", "no data", " fill-opacity=\"0.6\"");
  return out + "</svg>\n";
}

std::string svg_heatmap(const std::vector<std::string>& rows, const std::vector<std::string>& columns,
                        const std::vector<std::vector<double>>& values, const PlotOptions& o) {
  Range r;
  size_t longest = 4;
  for (const auto& row : values)
    for (double v : row)
      if (std::isfinite(v)) r.add(v);
  for (const std::string& name : rows) longest = std::max(longest, name.size());
  const Range range = widened(r);
  const double left = 30 + 6.2 * static_cast<double>(std::min<size_t>(longest, 30)), top = 50, cell_height = 26;
  const double cell = std::max(44.0, (o.width - left - 10) / static_cast<double>(std::max<size_t>(columns.size(), 1)));
  const double width = left + cell * static_cast<double>(columns.size()) + 10,
               height = top + cell_height * static_cast<double>(rows.size()) + 24;
  std::string out = open_svg(o, static_cast<int>(width), static_cast<int>(height));
  if (!o.y_label.empty())
    out += text_at(0, 0, "middle", o.y_label,
                   fmt::format(" transform=\"translate(12 {:.1f}) rotate(-90)\"", (top + height - 24) / 2));
  if (!o.x_label.empty()) out += text_at((left + width) / 2, height - 6, "middle", o.x_label);
  for (size_t j = 0; j < columns.size(); ++j)
    out += text_at(left + cell * (static_cast<double>(j) + 0.5), top - 8, "middle", columns[j]);
  for (size_t i = 0; i < rows.size(); ++i) {
    const double y = top + cell_height * static_cast<double>(i);
    out += text_at(left - 6, y + 17, "end", clipped(rows[i], 30));
    for (size_t j = 0; j < columns.size(); ++j) {
      const double v = i < values.size() && j < values[i].size() ? values[i][j] : std::nan("");
      if (!std::isfinite(v)) continue;
      // Opacity over the page's own ground carries the value, so the text keeps its contrast in light and dark.
      const double opacity = 0.08 + 0.55 * (v - range.low) / (range.high - range.low);
      out += fmt::format(
          "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"{}\" fill-opacity=\"{:.3f}\"/>\n",
          left + cell * static_cast<double>(j) + 1, y + 1, cell - 2, cell_height - 2, colour(0), opacity);
      out += text_at(left + cell * (static_cast<double>(j) + 0.5), y + 17, "middle", number_label(v));
    }
  }
  return out + "</svg>\n";
}

}  // namespace fewstep::io
