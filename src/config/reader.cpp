// YAML tree -> struct: every problem is collected, none stops the reading.
#include <algorithm>
#include <set>

#include "src/base/error.h"
#include "src/base/text.h"
#include "src/config/config.h"
#include "src/config/layers.h"
#include "src/config/scalar.h"

namespace fewstep::config {
namespace {

std::string range_words(Range r) {
  const bool low = r.min > -std::numeric_limits<double>::infinity(),
             high = r.max < std::numeric_limits<double>::infinity();
  if (low && high) return fmt::format("between {} and {}", r.min, r.max);
  if (high) return fmt::format("at most {}", r.max);
  return r.min == kPositive.min ? std::string("greater than 0") : fmt::format("at least {}", r.min);
}

// Settings that a config holds of itself, and the top-level key they stand under.
struct SettingsOfRoot {
  std::string under;
  ValuePtr map;
};

class Reader final : public Visitor {
 public:
  Reader(Problems& problems, ValuePtr root) : problems_(problems) { push(root, root->place, ""); }
  const std::vector<SettingsOfRoot>& settings() const { return settings_; }
  void finish() { leave(); }

  void field(std::string_view key, bool& v, std::string_view) override { one(key, "true or false", parse_bool, v); }
  void field(std::string_view key, int64_t& v, std::string_view, Range r) override {
    if (one(key, "an integer", parse_int, v)) check_range(key, static_cast<double>(v), fmt::format("{}", v), r);
  }
  void field(std::string_view key, double& v, std::string_view, Range r) override {
    if (one(key, "a number", parse_double, v)) check_range(key, v, fmt::format("{}", v), r);
  }
  void field(std::string_view key, std::string& v, std::string_view) override {
    if (const Entry* e = find(key))
      if (const Value* scalar = scalar_of(key, *e, "a string")) v = scalar->text;
  }
  void field(std::string_view key, std::vector<int64_t>& v, std::string_view, Range r) override {
    many(key, "an integer", parse_int, v, r);
  }
  void field(std::string_view key, std::vector<double>& v, std::string_view, Range r) override {
    many(key, "a number", parse_double, v, r);
  }
  void field(std::string_view key, std::vector<std::string>& v, std::string_view) override {
    const ValuePtr list = list_of(key);
    if (!list) return;
    std::vector<std::string> read;
    for (size_t i = 0; i < list->items.size(); ++i) {
      const Value& item = *list->items[i];
      if (item.is(Value::Type::scalar))
        read.push_back(item.text);
      else if (problems_.full())
        return;
      else
        report(item.place, fmt::format("{}[{}]", dotted(key), i),
               fmt::format("expected a string, got {}", shape_of(item)));
    }
    v = std::move(read);
  }
  void field(std::string_view key, Overrides& v, std::string_view) override {
    const Entry* e = find(key);
    if (!e) return;
    if (!e->value->is(Value::Type::map))
      return report(e->place, dotted(key), fmt::format("expected a map of settings, got {}", shape_of(*e->value)));
    Overrides read;
    std::set<std::string> seen;
    flatten(dotted(key), "", *e->value, read, seen);
    v = std::move(read);
  }
  void settings_of_root(std::string_view key, Overrides& v, std::string_view doc) override {
    field(key, v, doc);
    const Entry* e = top().node->find(key);
    if (e && e->value->is(Value::Type::map)) settings_.push_back({frames_.front().known.back(), e->value});
  }
  void require(std::string_view key) override {
    if (problems_.incomplete || top().node->find(key)) return;
    report(top().at, "", fmt::format("missing key '{}'", dotted(key)));
    bad_.insert(dotted(key));
  }
  void check(bool ok, std::string_view key, std::string_view message) override {
    // A value that could not be read was left at its default: what follows from that is not the user's mistake.
    if (ok || problems_.incomplete || bad_.contains(dotted(key))) return;
    const Entry* e = top().node->find(key);
    report(e ? place_of(*e) : top().at, dotted(key), message);
  }

 protected:
  void choice(std::string_view key, int& v, std::string_view, std::span<const Choice> choices) override {
    const Entry* e = find(key);
    if (!e) return;
    std::vector<std::string> names;
    for (const Choice& c : choices) names.emplace_back(c.name);
    const Value* scalar = scalar_of(key, *e, fmt::format("one of {}", fmt::join(names, ", ")));
    if (!scalar) return;
    for (const Choice& c : choices)
      if (c.name == scalar->text) return void(v = c.value);
    report(scalar->place, dotted(key), not_one_of(printable(scalar->text), names));
  }
  bool enter(std::string_view key, std::string_view) override {
    const Entry* e = find(key);
    static const ValuePtr kEmpty = [] {
      auto map = std::make_shared<Value>();
      map->type = Value::Type::map;
      return map;
    }();
    if (!e) return push(kEmpty, top().at, dotted(key)), true;  // its own required keys and checks still count
    if (!e->value->is(Value::Type::map)) {
      report(place_of(*e), dotted(key), fmt::format("expected a map, got {}", shape_of(*e->value)));
      return false;
    }
    push(e->value, e->place, dotted(key));
    return true;
  }
  bool enter_kind(std::string_view key, std::string_view doc, bool present) override {
    if (present || top().node->find(key)) return enter(key, doc);
    top().known.emplace_back(key);
    return false;
  }
  int kind(std::span<const std::string> names, int current) override {
    const Entry* e = find("kind");
    if (!e) {
      if (current < 0 && !problems_.incomplete)
        report(top().at, "", fmt::format("missing key '{}' (one of {})", dotted("kind"), fmt::join(names, ", ")));
      return current;
    }
    const Value* scalar = scalar_of("kind", *e, fmt::format("one of {}", fmt::join(names, ", ")));
    if (!scalar) return -1;
    const auto found = std::find(names.begin(), names.end(), scalar->text);
    if (found != names.end()) return static_cast<int>(found - names.begin());
    report(scalar->place, dotted("kind"), not_one_of(printable(scalar->text), names));
    return -1;
  }
  int64_t enter_list(std::string_view key, std::string_view, int64_t) override {
    const ValuePtr list = list_of(key);
    if (!list) return -1;
    lists_.push_back({list, dotted(key)});
    return static_cast<int64_t>(list->items.size());
  }
  bool enter_item(int64_t index) override {
    const auto& [list, path] = lists_.back();
    const ValuePtr item = list->items[static_cast<size_t>(index)];
    std::string name = fmt::format("{}[{}]", path, index);
    if (!item->is(Value::Type::map)) {
      report(item->place, name, fmt::format("expected a map, got {}", shape_of(*item)));
      return false;
    }
    push(item, item->place, std::move(name));
    return true;
  }
  void leave_list() override { lists_.pop_back(); }
  void leave() override {
    const Frame& frame = top();
    for (const Entry& e : frame.node->entries) {
      if (std::find(frame.known.begin(), frame.known.end(), e.key) != frame.known.end()) continue;
      if (problems_.full()) {
        problems_.add(e.place, "");  // counted only
        continue;
      }
      const std::string close = nearest(e.key, frame.known);
      std::string hint = close.empty() ? fmt::format(" (known: {})", fmt::join(frame.known, ", "))
                                       : fmt::format(" (did you mean '{}'?)", close);
      if (frame.known.empty()) hint = " (nothing can be set here)";
      if (e.key.find(':') != std::string::npos) hint = " (is there a space after the colon?)";
      report(e.place, "", fmt::format("unknown key '{}'{}", dotted(printable(e.key)), hint));
    }
    drop();
  }
  void drop() override { frames_.pop_back(); }

 private:
  struct Frame {
    ValuePtr node;
    Place at;  // where a missing key is reported
    std::string path;
    std::vector<std::string> known;  // keys that were asked for, in order
  };

  Frame& top() { return frames_.back(); }
  void push(ValuePtr node, Place at, std::string path) {
    frames_.push_back({std::move(node), at, std::move(path), {}});
  }
  std::string dotted(std::string_view key) const {
    const std::string& path = frames_.back().path;
    return path.empty() ? std::string(key) : fmt::format("{}.{}", path, key);
  }
  const Entry* find(std::string_view key) {
    top().known.emplace_back(key);
    return top().node->find(key);
  }
  // Of the value, except where only the key's is on the right line.
  static Place place_of(const Entry& e) { return e.value->is(Value::Type::scalar) ? e.value->place : e.place; }
  void report(Place at, const std::string& path, std::string_view message) {
    bad_.insert(path);
    problems_.add(at, path.empty() ? std::string(message) : fmt::format("{}: {}", path, message));
  }
  const Value* scalar_of(std::string_view key, const Entry& e, std::string_view want) {
    if (e.value->is(Value::Type::scalar)) return e.value.get();
    report(place_of(e), dotted(key), fmt::format("expected {}, got {}", want, shape_of(*e.value)));
    return nullptr;
  }
  template <class T>
  using Parse = std::optional<std::string> (*)(std::string_view, T&);

  // What is wrong with a scalar as a T, or nothing.
  template <class T>
  static std::optional<std::string> convert(const Value& scalar, std::string_view want, Parse<T> parse, T& v) {
    T parsed{};
    std::optional<std::string> wrong = parse(scalar.text, parsed);
    if (scalar.quoted) wrong = wrong ? "" : " (remove the quotes)";
    if (wrong) return fmt::format("expected {}, got {}{}", want, shape_of(scalar), *wrong);
    v = parsed;
    return std::nullopt;
  }
  template <class T>
  bool one(std::string_view key, std::string_view want, Parse<T> parse, T& v) {
    const Entry* e = find(key);
    const Value* scalar = e ? scalar_of(key, *e, want) : nullptr;
    if (!scalar) return false;
    const auto wrong = convert(*scalar, want, parse, v);
    if (wrong) report(scalar->place, dotted(key), *wrong);
    return !wrong;
  }
  ValuePtr list_of(std::string_view key) {
    const Entry* e = find(key);
    if (!e) return nullptr;
    if (e->value->is(Value::Type::list)) return e->value;
    report(place_of(*e), dotted(key), fmt::format("expected a list, got {}", shape_of(*e->value)));
    return nullptr;
  }
  template <class T>
  void many(std::string_view key, std::string_view want, Parse<T> parse, std::vector<T>& v, Range r) {
    const ValuePtr list = list_of(key);
    if (!list) return;
    std::vector<T> read;
    for (size_t i = 0; i < list->items.size(); ++i) {
      const Value& item = *list->items[i];
      T x{};
      std::optional<std::string> wrong;
      if (!item.is(Value::Type::scalar))
        wrong = fmt::format("expected {}, got {}", want, shape_of(item));
      else if (wrong = convert(item, want, parse, x);
               !wrong && !(static_cast<double>(x) >= r.min && static_cast<double>(x) <= r.max))
        wrong = fmt::format("{} must be {}", x, range_words(r));
      if (wrong && problems_.full()) return;
      if (wrong) {
        report(item.place, fmt::format("{}[{}]", dotted(key), i), *wrong);
        bad_.insert(dotted(key));
      }
      read.push_back(x);
    }
    v = std::move(read);
  }
  void check_range(std::string_view key, double v, const std::string& shown, Range r) {
    if (v >= r.min && v <= r.max) return;
    report(top().node->find(key)->value->place, dotted(key), fmt::format("{} must be {}", shown, range_words(r)));
  }
  void flatten(const std::string& where, const std::string& prefix, const Value& map, Overrides& out,
               std::set<std::string>& seen) {
    for (const Entry& e : map.entries) {
      const std::string name = prefix.empty() ? e.key : prefix + "." + e.key;
      if (e.key.empty()) {
        report(e.place, where, "an empty key");
      } else if (e.value->is(Value::Type::map) && !e.value->entries.empty()) {
        flatten(where, name, *e.value, out, seen);
      } else if (e.value->is(Value::Type::null)) {
        report(e.place, where + "." + name, "expected a value, got null");
      } else if (!seen.insert(name).second) {
        report(e.place, where, fmt::format("'{}' is given twice", printable(name)));
      } else {
        out.emplace_back(name, flow_text(*e.value));
      }
    }
  }

  Problems& problems_;
  std::vector<Frame> frames_;
  std::vector<std::pair<ValuePtr, std::string>> lists_;
  std::set<std::string> bad_;  // keys already reported
  std::vector<SettingsOfRoot> settings_;
};

// `tree` into `root`, and for check only, with each of its settings of itself into a fresh one.
void read_tree(const ValuePtr& tree, Problems& problems, DescribeRoot describe_root, void* root, MakeRoot make) {
  Reader reader(problems, tree);
  describe_root(reader, root);
  reader.finish();
  for (const SettingsOfRoot& settings : reader.settings()) {
    if (!make) continue;
    Reader checked(problems, lay_over(tree, settings.under, *settings.map));
    describe_root(checked, make().get());
    checked.finish();
  }
  problems.throw_if_any();
}

}  // namespace

void read_file(const std::filesystem::path& path, std::span<const std::string> overrides, DescribeRoot describe_root,
               void* root, MakeRoot make) {
  Problems problems;
  read_tree(load_layers(path, overrides, problems), problems, describe_root, root, make);
}

void read_overrides(std::span<const std::string> overrides, DescribeRoot describe_root, void* root) {
  Problems problems;
  read_tree(load_command_line(overrides, problems), problems, describe_root, root, nullptr);
}

std::vector<std::string> top_level_keys(const std::filesystem::path& path) {
  Problems problems;
  std::vector<std::string> keys;
  const ValuePtr tree = load_layers(path, {}, problems);  // must outlive the loop
  for (const Entry& e : tree->entries) keys.push_back(e.key);
  return keys;
}

void read_string(const std::string& yaml, const std::string& name, DescribeRoot describe_root, void* root, MakeRoot make) {
  Problems problems;
  read_tree(load_text(yaml, name, problems), problems, describe_root, root, make);
}

void read_overlay(const std::string& yaml, const std::string& under, const Overrides& settings, DescribeRoot describe_root,
                  void* root) {
  Problems problems;
  const ValuePtr tree = load_text(yaml, "resolved config", problems);
  std::vector<std::string> lines;
  for (const auto& [key, value] : settings) lines.push_back(key + "=" + value);
  const ValuePtr over = load_command_line(lines, problems);
  read_tree(lay_over(tree, under, *over), problems, describe_root, root, nullptr);
}

}  // namespace fewstep::config
