// Struct -> YAML: every key, in the order of describe(), so that the file alone repeats the run.
#include "src/base/error.h"
#include "src/config/config.h"
#include "src/config/scalar.h"

namespace fewstep::config {
namespace {

class Writer final : public Visitor {
 public:
  std::string text() const { return out_.empty() ? "{}\n" : out_; }

  void field(std::string_view key, bool& v, std::string_view) override { line(key, v ? "true" : "false"); }
  void field(std::string_view key, int64_t& v, std::string_view, Range) override { line(key, fmt::format("{}", v)); }
  void field(std::string_view key, double& v, std::string_view, Range) override { line(key, double_text(v)); }
  void field(std::string_view key, std::string& v, std::string_view) override { line(key, string_text(v)); }
  void field(std::string_view key, std::vector<int64_t>& v, std::string_view, Range) override {
    line(key, fmt::format("[{}]", fmt::join(v, ", ")));
  }
  void field(std::string_view key, std::vector<double>& v, std::string_view, Range) override {
    std::vector<std::string> items;
    for (const double x : v) items.push_back(double_text(x));
    line(key, fmt::format("[{}]", fmt::join(items, ", ")));
  }
  void field(std::string_view key, std::vector<std::string>& v, std::string_view) override {
    std::vector<std::string> items;
    for (const std::string& x : v) items.push_back(string_text(x));
    line(key, fmt::format("[{}]", fmt::join(items, ", ")));
  }
  void field(std::string_view key, Overrides& v, std::string_view) override {
    open(key);
    for (const auto& [name, value] : v) line(name, value);  // already YAML
    close();
  }
  void require(std::string_view) override {}
  void check(bool, std::string_view, std::string_view) override {}

 protected:
  void choice(std::string_view key, int& v, std::string_view, std::span<const Choice> choices) override {
    for (const Choice& c : choices)
      if (c.value == v) return line(key, std::string(c.name));
    fail<>("config key '{}': value {} has no name", key, v);
  }
  bool enter(std::string_view key, std::string_view) override { return open(key), true; }
  bool enter_kind(std::string_view key, std::string_view, bool present) override {
    if (present) open(key);
    return present;
  }
  int kind(std::span<const std::string> names, int current) override {
    FEW_CHECK(current >= 0, "a config whose kind() is not in its table ({})", fmt::join(names, ", "));
    line("kind", names[static_cast<size_t>(current)]);
    return current;
  }
  int64_t enter_list(std::string_view key, std::string_view, int64_t current) override {
    open(key);
    open_.back().empty = "[]";
    return current;
  }
  bool enter_item(int64_t) override {
    begin_block();
    open_.push_back({"", "{}", open_.back().indent + 2, true, false});
    return true;
  }
  void leave_list() override { close(); }
  void leave() override { close(); }
  void drop() override { close(); }

 private:
  struct Block {
    std::string head;  // "key:" is written when the first line inside it is, or with `empty` behind it
    std::string empty;
    size_t indent;      // of the lines inside
    bool item = false;  // the first line inside follows "- "
    bool begun = false;
  };

  size_t indent() const { return open_.empty() ? 0 : open_.back().indent; }
  void open(std::string_view key) {
    begin_block();
    open_.push_back({string_text(key) + ":", "{}", indent() + 2});
  }
  // The lines that introduce the innermost block, once; every block around it has begun before.
  void begin_block() {
    if (open_.empty() || open_.back().begun) return;
    Block& block = open_.back();
    block.begun = true;
    if (block.item)
      after_dash_ = true;  // the first line inside writes the dash
    else
      put(block.head, block.indent - 2);
  }
  void close() {
    Block block = std::move(open_.back());
    open_.pop_back();
    if (block.begun) return;
    if (block.item)
      put("- " + block.empty, block.indent - 2);
    else
      put(block.head + " " + block.empty, block.indent - 2);
  }
  void line(std::string_view key, const std::string& value) {
    begin_block();
    put(string_text(key) + ": " + value, indent());
  }
  void put(const std::string& text, size_t spaces) {
    if (after_dash_)
      out_ += std::string(spaces - 2, ' ') + "- " + text + "\n";
    else
      out_ += std::string(spaces, ' ') + text + "\n";
    after_dash_ = false;
  }

  std::string out_;
  std::vector<Block> open_;
  bool after_dash_ = false;
};

}  // namespace

std::string write_string(DescribeRoot describe_root, void* root) {
  Writer writer;
  describe_root(writer, root);
  return writer.text();
}

}  // namespace fewstep::config
