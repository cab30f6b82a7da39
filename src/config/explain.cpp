// Struct -> documentation: one line a key, with its type, default, range or choices and meaning.
#include <algorithm>
#include <map>

#include "src/base/error.h"
#include "src/config/config.h"
#include "src/config/scalar.h"

namespace fewstep::config {
namespace {

std::string limits(Range r) {
  const bool low = r.min > -std::numeric_limits<double>::infinity(),
             high = r.max < std::numeric_limits<double>::infinity();
  if (low && high) return fmt::format("  [{} to {}]", r.min, r.max);
  if (high) return fmt::format("  [at most {}]", r.max);
  if (r.min == kPositive.min) return "  [> 0]";
  return low ? fmt::format("  [>= {}]", r.min) : "";
}

class Explain final : public Visitor {
 public:
  std::string text() const {
    size_t width = 0;
    for (const Line& l : lines_)
      if (l.left.size() <= kMaxLeft) width = std::max(width, l.left.size());
    std::string out;
    for (const Line& l : lines_) {
      const std::string doc = (l.required ? "required: " : "") + l.doc;
      const size_t gap = (l.left.size() < width ? width - l.left.size() : 0) + 2;
      out += l.left + (doc.empty() ? "" : std::string(gap, ' ') + "# " + doc) + "\n";
    }
    return out;
  }

  void field(std::string_view key, bool& v, std::string_view doc) override {
    add(key, "bool", v ? "true" : "false", "", doc);
  }
  void field(std::string_view key, int64_t& v, std::string_view doc, Range r) override {
    add(key, "int", fmt::format("{}", v), limits(r), doc);
  }
  void field(std::string_view key, double& v, std::string_view doc, Range r) override {
    add(key, "float", fmt::format("{}", v), limits(r), doc);
  }
  void field(std::string_view key, std::string& v, std::string_view doc) override {
    add(key, "string", string_text(v), "", doc);
  }
  void field(std::string_view key, std::vector<int64_t>& v, std::string_view doc, Range r) override {
    add(key, "list of int", fmt::format("[{}]", fmt::join(v, ", ")), limits(r), doc);
  }
  void field(std::string_view key, std::vector<double>& v, std::string_view doc, Range r) override {
    add(key, "list of float", fmt::format("[{}]", fmt::join(v, ", ")), limits(r), doc);
  }
  void field(std::string_view key, std::vector<std::string>& v, std::string_view doc) override {
    std::vector<std::string> items;
    for (const std::string& x : v) items.push_back(string_text(x));
    add(key, "list of string", fmt::format("[{}]", fmt::join(items, ", ")), "", doc);
  }
  void field(std::string_view key, Overrides& v, std::string_view doc) override {
    add(key, "map of settings", v.empty() ? "{}" : fmt::format("{{{} keys}}", v.size()), "", doc);
  }
  // May stand before or after the field it speaks of.
  void require(std::string_view key) override {
    Frame& frame = frames_.back();
    frame.required.emplace_back(key);
    if (const auto line = frame.lines.find(std::string(key)); line != frame.lines.end())
      lines_[line->second].required = true;
  }
  void check(bool, std::string_view, std::string_view) override {}

 protected:
  void choice(std::string_view key, int& v, std::string_view doc, std::span<const Choice> choices) override {
    std::vector<std::string_view> names;
    std::string_view current = "?";
    for (const Choice& c : choices) {
      names.push_back(c.name);
      if (c.value == v) current = c.name;
    }
    add(key, fmt::format("{}", fmt::join(names, "|")), std::string(current), "", doc);
  }
  bool enter(std::string_view key, std::string_view doc) override {
    header(key, ":", doc);
    frames_.push_back({});
    return true;
  }
  bool document_kinds(std::string_view key, std::string_view doc, std::span<const std::string> names,
                      int current) override {
    const std::string chosen = current >= 0 ? " = " + names[static_cast<size_t>(current)] : "";
    header(key, fmt::format(": one kind of {}{}", fmt::join(names, "|"), chosen), doc);
    frames_.push_back({});
    return true;
  }
  void document_kind(std::string_view name) override {
    header("kind", fmt::format(": {}", name), "");
    frames_.push_back({});
  }
  bool enter_kind(std::string_view, std::string_view, bool) override {
    return false;
  }  // never: document_kinds() is true
  int kind(std::span<const std::string>, int current) override { return current; }
  int64_t enter_list(std::string_view key, std::string_view doc, int64_t) override {
    header(key, ": list of maps", doc);
    return kDocumentItem;
  }
  bool enter_item(int64_t) override { return frames_.push_back({}), true; }
  void leave_list() override {}
  void leave() override { frames_.pop_back(); }
  void drop() override { frames_.pop_back(); }

 private:
  static constexpr size_t kMaxLeft = 64;  // longer lines do not push the comments of the others to the right
  struct Line {
    std::string left, doc;
    bool required = false;
  };
  struct Frame {
    std::map<std::string, size_t> lines;
    std::vector<std::string> required;
  };

  void header(std::string_view key, const std::string& rest, std::string_view doc) {
    Frame& frame = frames_.back();
    frame.lines[std::string(key)] = lines_.size();
    const bool required = std::find(frame.required.begin(), frame.required.end(), key) != frame.required.end();
    lines_.push_back(
        {std::string(2 * (frames_.size() - 1), ' ') + std::string(key) + rest, std::string(doc), required});
  }
  void add(std::string_view key, std::string_view type, const std::string& value, const std::string& range,
           std::string_view doc) {
    header(key, fmt::format(": {} = {}{}", type, value, range), doc);
  }

  std::vector<Line> lines_;
  std::vector<Frame> frames_{1};
};

}  // namespace

std::string explain_string(DescribeRoot describe_root, void* root) {
  Explain explain;
  describe_root(explain, root);
  return explain.text();
}

}  // namespace fewstep::config
