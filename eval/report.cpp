#include "eval/report.h"

#include "eval/html.h"
#include "src/base/error.h"
#include "src/base/files.h"
#include "src/io/image.h"
#include "src/tensor/ops.h"
#include "src/tensor/shape.h"

namespace fewstep::eval {
namespace {

// System fonts, one accent, both colour schemes; wide tables scroll inside their own box, so the page never does.
constexpr std::string_view kStyle = R"css(
:root{--bg:#fbfbfa;--card:#fff;--ink:#1d1f21;--soft:#61666b;--line:#e4e5e3;--accent:#2459a6;--good:#1f7a4d;
--bad:#b3372f;--zebra:#f6f6f4}
@media (prefers-color-scheme:dark){:root{--bg:#15171a;--card:#1d2024;--ink:#e6e7e8;--soft:#9aa1a8;--line:#32363c;
--accent:#7fb0f5;--good:#5fc892;--bad:#f08a80;--zebra:#22262b}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif}
main{max-width:1080px;margin:0 auto;padding:2.2rem 1.1rem 4rem}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .3rem;letter-spacing:-.01em}
h2{font-size:1.25rem;margin:0 0 .7rem}
h3{font-size:.98rem;margin:1.2rem 0 .45rem;color:var(--soft);font-weight:600}
p{margin:.35rem 0 .8rem;max-width:75ch}
.sub{color:var(--soft);font-size:1.02rem}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:1.2rem 1.3rem;
margin:1.1rem 0}
nav{margin:.9rem 0 0;font-size:.92rem;display:flex;flex-wrap:wrap;gap:.2rem 1.1rem}
a{color:var(--accent);text-decoration:none}a:hover{text-decoration:underline}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(165px,1fr));gap:.7rem;margin:1.3rem 0 .3rem}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:.75rem .95rem}
.card b{display:block;font-size:1.5rem;font-weight:650;font-variant-numeric:tabular-nums;line-height:1.3}
.card span{display:block;color:var(--soft);font-size:.84rem;line-height:1.35}
.card.good b{color:var(--good)}.card.bad b{color:var(--bad)}
.scroll{overflow-x:auto;margin:.4rem 0 .3rem}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;min-width:100%}
th,td{padding:.42rem .75rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th{color:var(--soft);font-weight:600;font-size:.82rem;vertical-align:bottom}
th:not(:first-child){white-space:normal;max-width:11rem}
th:first-child,td:first-child{text-align:left;font-weight:550}
tbody tr:nth-child(even){background:var(--zebra)}
.note{color:var(--soft);font-size:.85rem;margin:.2rem 0 .9rem}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:1rem}
.plots svg{width:100%;max-width:640px;height:auto;display:block}
.figures{display:flex;flex-wrap:wrap;gap:1rem;align-items:flex-start}
figure{margin:0;max-width:100%}
figure img{display:block;max-width:100%;height:auto;border-radius:6px;image-rendering:pixelated;background:#fff}
figcaption{color:var(--soft);font-size:.85rem;margin-top:.35rem;max-width:26rem}
dl{display:grid;grid-template-columns:minmax(8rem,auto) 1fr;gap:.25rem 1.2rem;margin:0;font-size:.88rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
@media (max-width:560px){main{padding:1.3rem .7rem 3rem}section{padding:.95rem .9rem}h1{font-size:1.5rem}dl{
grid-template-columns:1fr;gap:0}dd{margin:0 0 .5rem}}
@media print{section{break-inside:avoid}body{background:#fff}}
)css";

// Metric names are long: a line may end before the brackets, nowhere else.
void write_heading(Html& html, const std::string& cell) {
  auto heading = html.open("th", {{"scope", "col"}});
  const size_t bracket = cell.find('[');
  html.text(cell.substr(0, bracket));
  if (bracket == std::string::npos) return;
  html.raw("<wbr>");
  html.text(cell.substr(bracket));
}

void write_table(Html& html, const ReportTable& table) {
  if (!table.title.empty()) html.leaf("h3", table.title);
  {
    auto box = html.open("div", {{"class", "scroll"}});
    auto element = html.open("table");
    {
      auto head = html.open("thead");
      auto row = html.open("tr");
      for (const std::string& cell : table.header) write_heading(html, cell);
    }
    auto body = html.open("tbody");
    for (const auto& cells : table.rows) {
      FEW_CHECK(cells.size() == table.header.size(), "table '{}': a row of {} cells under {} headings", table.title,
                cells.size(), table.header.size());
      auto row = html.open("tr");
      for (const std::string& cell : cells) html.leaf("td", cell);
    }
  }
  if (!table.note.empty()) html.leaf("p", table.note, {{"class", "note"}});
}

std::string anchor(std::string_view heading) {
  std::string id;
  for (char c : heading) id += std::isalnum(static_cast<unsigned char>(c)) ? static_cast<char>(std::tolower(c)) : '-';
  return id;
}

void write_section(Html& html, const ReportSection& section) {
  auto element = html.open("section", {{"id", anchor(section.heading)}});
  html.leaf("h2", section.heading);
  for (const std::string& paragraph : section.paragraphs) html.leaf("p", paragraph);
  for (const ReportTable& table : section.tables) write_table(html, table);
  if (!section.plots.empty()) {
    auto plots = html.open("div", {{"class", "plots"}});
    for (const std::string& svg : section.plots) {
      auto plot = html.open("div");
      html.raw(svg);
    }
  }
  if (!section.figures.empty()) {
    auto figures = html.open("div", {{"class", "figures"}});
    for (const ReportFigure& f : section.figures) {
      auto figure = html.open("figure");
      html.image(f.png, f.caption);
      html.leaf("figcaption", f.caption);
    }
  }
}

void write_header(Html& html, const Report& report) {
  auto header = html.open("header");
  html.leaf("h1", report.title);
  html.leaf("p", report.subtitle, {{"class", "sub"}});
  if (!report.headlines.empty()) {
    auto cards = html.open("div", {{"class", "cards"}});
    for (const ReportHeadline& h : report.headlines) {
      auto card = html.open("div", {{"class", h.good ? "card" : "card bad"}});
      html.leaf("span", h.label);
      html.leaf("b", h.value);
      html.leaf("span", h.detail);
    }
  }
  auto nav = html.open("nav", {{"aria-label", "sections"}});
  for (const ReportSection& s : report.sections) html.leaf("a", s.heading, {{"href", "#" + anchor(s.heading)}});
}

}  // namespace

std::string render(const Report& report) {
  Html html;
  {
    auto main = html.open("main");
    write_header(html, report);
    for (const ReportSection& section : report.sections) write_section(html, section);
    auto provenance = html.open("section", {{"id", "provenance"}});
    html.leaf("h2", "Provenance");
    auto list = html.open("dl");
    for (const auto& [key, value] : report.provenance) {
      html.leaf("dt", key);
      html.leaf("dd", value);
    }
  }
  return html.page(report.title, kStyle);
}

void write_report(const std::filesystem::path& path, const Report& report) { write_text_atomic(path, render(report)); }

ReportFigure grid_figure(const Tensor& images, int64_t columns, std::string caption) {
  const auto [N, C, H, W] = dims<4>(images);
  // About 64 pixels a photograph: enlarged by whole factors, so that every pixel stays a square.
  const int64_t scale = std::max<int64_t>(1, 64 / std::max(H, W));
  return {io::encode_png(io::make_grid(images, std::min(columns, N), 2, scale)), std::move(caption)};
}

}  // namespace fewstep::eval
