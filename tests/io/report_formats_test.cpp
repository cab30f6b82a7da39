// TensorBoard event files, read back byte by byte, and SVG charts.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/hash.h"
#include "src/io/svg_plot.h"
#include "src/io/tensorboard.h"
#include "tests/io/scratch.h"

namespace fewstep::io {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// Protobuf fields in order: number -> raw value (varints as their number).
struct Field {
  int number = 0;
  uint64_t integer = 0;
  std::string bytes;
};
std::vector<Field> fields_of(std::string_view m) {
  std::vector<Field> out;
  const auto varint = [&] {
    uint64_t v = 0;
    for (int shift = 0;; shift += 7) {
      const auto b = static_cast<uint8_t>(m.at(0));
      m.remove_prefix(1);
      v |= static_cast<uint64_t>(b & 127) << shift;
      if (b < 128) return v;
    }
  };
  while (!m.empty()) {
    const uint64_t key = varint();
    Field f{static_cast<int>(key >> 3), 0, ""};
    size_t bytes = 0;
    switch (key & 7) {
      case 0:
        f.integer = varint();
        break;
      case 1:
        bytes = 8;
        break;
      case 5:
        bytes = 4;
        break;
      case 2:
        bytes = varint();
        break;
      default:
        ADD_FAILURE() << "wire type " << (key & 7);
    }
    f.bytes = m.substr(0, bytes);
    m.remove_prefix(bytes);
    out.push_back(f);
  }
  return out;
}
const Field& field(const std::vector<Field>& fields, int number) {
  for (const Field& f : fields)
    if (f.number == number) return f;
  throw Error("no field " + std::to_string(number));
}
template <class T>
T as(const std::string& bytes) {
  T v{};
  EXPECT_EQ(bytes.size(), sizeof v);
  std::memcpy(&v, bytes.data(), sizeof v);
  return v;
}
uint32_t masked(std::string_view s) { return std::rotr(crc32c(s.data(), s.size()), 15) + 0xa282ead8u; }

std::vector<std::string> records_of(std::string_view file) {
  std::vector<std::string> out;
  while (!file.empty()) {
    const auto length = as<uint64_t>(std::string(file.substr(0, 8)));
    EXPECT_EQ(as<uint32_t>(std::string(file.substr(8, 4))), masked(file.substr(0, 8)));
    const std::string_view data = file.substr(12, length);
    EXPECT_EQ(as<uint32_t>(std::string(file.substr(12 + length, 4))), masked(data));
    out.emplace_back(data);
    file.remove_prefix(16 + length);
  }
  return out;
}

TEST(TensorBoard, EventsReadBack) {
  Scratch scratch;
  TensorBoardWriter writer(scratch / "tb");
  writer.scalar("loss/train", 0.5, 3);
  writer.image("samples", "PNGBYTES", 16, 8, 1000000007);
  writer.text("config", std::string(300, 'c'), 0);
  writer.flush();
  EXPECT_TRUE(writer.path().filename().string().starts_with("events.out.tfevents."));
  const std::vector<std::string> records = records_of(read_text(writer.path()));
  ASSERT_EQ(records.size(), 4u);
  EXPECT_EQ(field(fields_of(records[0]), 3).bytes, "brain.Event:2");
  EXPECT_GT(as<double>(field(fields_of(records[0]), 1).bytes), 1.6e9);
  const auto value = [&](size_t i) {
    return fields_of(field(fields_of(field(fields_of(records[i]), 5).bytes), 1).bytes);
  };
  EXPECT_EQ(field(fields_of(records[1]), 2).integer, 3u);
  EXPECT_EQ(field(value(1), 1).bytes, "loss/train");
  EXPECT_EQ(as<float>(field(value(1), 2).bytes), 0.5f);
  EXPECT_EQ(field(fields_of(records[2]), 2).integer, 1000000007u);
  const auto image = fields_of(field(value(2), 4).bytes);
  EXPECT_EQ(field(image, 1).integer, 8u);
  EXPECT_EQ(field(image, 2).integer, 16u);
  EXPECT_EQ(field(image, 4).bytes, "PNGBYTES");
  EXPECT_EQ(field(fields_of(field(value(3), 8).bytes), 8).bytes, std::string(300, 'c'));
  EXPECT_EQ(field(fields_of(field(fields_of(field(value(3), 9).bytes), 1).bytes), 1).bytes, "text");
}

TEST(TensorBoard, TwoWritersTwoFiles) {
  Scratch scratch;
  const TensorBoardWriter a(scratch / "tb"), b(scratch / "tb");
  EXPECT_NE(a.path(), b.path());
  EXPECT_THROW(TensorBoardWriter("/proc/none"), DataError);
}

// Every number that goes into the picture is finite and every tag is closed.
void expect_sound(const std::string& svg) {
  EXPECT_TRUE(svg.starts_with("<svg ")) << svg.substr(0, 80);
  EXPECT_TRUE(svg.ends_with("</svg>\n"));
  for (const char* bad : {"nan", "inf", "NaN"}) EXPECT_THAT(svg, Not(HasSubstr(bad)));
  for (const char* tag : {"text", "title", "svg"}) {
    size_t opened = 0, closed = 0;
    for (size_t p = 0; (p = svg.find(std::string("<") + tag, p)) != svg.npos; ++p) ++opened;
    for (size_t p = 0; (p = svg.find(std::string("</") + tag + ">", p)) != svg.npos; ++p) ++closed;
    EXPECT_EQ(opened, closed) << tag;
  }
  EXPECT_LT(svg.size(), 100000u);
}

TEST(SvgPlot, OddData) {
  const double none = std::nan(""), infinite = std::numeric_limits<double>::infinity();
  const std::vector<std::vector<Series>> cases = {
      {},
      {{"empty", {}, {}}},
      {{"one", {1}, {2}}},
      {{"constant", {0, 1, 2}, {5, 5, 5}}},
      {{"zeros", {0, 0}, {0, 0}}},
      {{"missing", {0, 1, 2, 3}, {1, none, infinite, 4}}},
      {{"all missing", {0, 1}, {none, none}}},
      {{"negative", {0, 1, 2}, {-1, 0, 10}}},
      {{"huge", {0, 1}, {-1e308, 1e308}}},
      {{"tiny", {1e-300, 2e-300}, {1e-308, 3e-308}}},
      {{"unequal", {0, 1, 2}, {1}}},
      {{"a < \"b\" & c", {0, 1, 2}, {1, 10, 1000}}, {"second", {0, 2}, {3, 30}}, {"", {1}, {1}}},
  };
  for (const auto& series : cases)
    for (const bool log_y : {false, true})
      expect_sound(svg_lines(series, {.title = "t & <t>", .x_label = "step", .y_label = "y", .log_y = log_y}));
  EXPECT_THAT(svg_lines({}, {}), HasSubstr("no data"));
  EXPECT_THAT(svg_lines({{"gap", {0, 1, 2, 3, 4}, {1, 2, none, 3, 4}}}, {}), HasSubstr("M"));
}

TEST(SvgPlot, TicksAreRoundAndSeriesAreDrawn) {
  const std::string svg = svg_lines({{"loss", {0, 500, 1000}, {2.31, 0.9, 0.42}}}, {.title = "Loss"});
  for (const char* tick : {">0<", ">200<", ">1000<", ">0.5<", ">2.5<", ">loss<", ">Loss<"})
    EXPECT_THAT(svg, HasSubstr(tick));
  const std::string log = svg_lines({{"loss", {0, 1, 2}, {0.001, 1, 100}}}, {.log_y = true});
  for (const char* tick : {">0.001<", ">1<", ">100<"}) EXPECT_THAT(log, HasSubstr(tick));
  EXPECT_THAT(svg, HasSubstr("currentColor"));
}

TEST(SvgPlot, NamedPointsOnLogarithmicAxesAndPanels) {
  const std::vector<Series> points = {{"fast & good", {0.002}, {1.5}}, {"slow", {200}, {0.1}}, {"nowhere", {0}, {1}}};
  const std::string svg = svg_lines(points, {.x_label = "ms", .log_y = true, .log_x = true, .names = true});
  expect_sound(svg);
  EXPECT_THAT(svg, HasSubstr(">fast &amp; good</text>"));
  EXPECT_THAT(svg, Not(HasSubstr("nowhere")));  // zero has no logarithm
  EXPECT_THAT(svg, Not(HasSubstr("<rect")));    // no legend
  for (const char* tick : {">0.01<", ">100<"}) EXPECT_THAT(svg, HasSubstr(tick));
  const std::string both = svg_stack({svg, svg_lines(points, {.height = 200})});
  expect_sound(both);
  EXPECT_THAT(both, HasSubstr("<svg y=\"300\""));
  EXPECT_EQ(svg_stack({svg}), svg);
  EXPECT_EQ(svg_stack({}), "");
}

TEST(SvgPlot, BarsAndHeatMap) {
  const double none = std::nan("");
  expect_sound(svg_bars({"a", "b", "long label that is cut \xc3\xa9\xc3\xa9\xc3\xa9"}, {1, -2, none}, {.title = "t"}));
  expect_sound(svg_bars({}, {}, {}));
  expect_sound(svg_heatmap({}, {}, {}, {}));
  const std::string map = svg_heatmap({"r1", "r2"}, {"c1", "c2"}, {{1, none}, {2.5}}, {.title = "m"});
  expect_sound(map);
  EXPECT_THAT(map, HasSubstr(">2.5<"));
  size_t cells = 0;
  for (size_t p = 0; (p = map.find("fill-opacity", p)) != map.npos; ++p) ++cells;
  EXPECT_EQ(cells, 2u);
}

}  // namespace
}  // namespace fewstep::io
