#include "src/config/tree.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <map>
#include <sstream>
#include <unordered_map>

#include "src/base/error.h"
#include "src/base/text.h"
#include "src/config/scalar.h"

namespace fewstep::config {
namespace {

constexpr size_t kMaxDepth = 64;
constexpr size_t kMaxAliasNodes = 100'000;

// Turns yaml-cpp's 0-based marks, whose columns count bytes, into places.
class Places {
 public:
  Places(std::string_view text, Place origin) : text_(text), origin_(origin) {
    line_starts_.push_back(0);
    for (size_t i = 0; i < text.size(); ++i)
      if (text[i] == '\n') line_starts_.push_back(i + 1);
  }
  Place at(const YAML::Mark& mark) {
    if (mark.line < 0 || mark.column < 0) return origin_;
    return at(static_cast<size_t>(mark.line), static_cast<size_t>(mark.column));
  }
  Place at_offset(size_t offset) {
    const auto next = std::upper_bound(line_starts_.begin(), line_starts_.end(), offset);
    const size_t line = static_cast<size_t>(next - line_starts_.begin()) - 1;
    return at(line, offset - line_starts_[line]);
  }

 private:
  Place at(size_t line, size_t column) {
    line = std::min(line, line_starts_.size() - 1);
    const size_t begin = line_starts_[line];
    // Marks come almost in order: counting on from the last one keeps a long line linear.
    if (line != line_ || column < bytes_) line_ = line, bytes_ = 0, characters_ = 0;
    for (; bytes_ < column && begin + bytes_ < text_.size(); ++bytes_)
      characters_ += (static_cast<unsigned char>(text_[begin + bytes_]) & 0xC0) != 0x80;
    const int shift = line == 0 ? origin_.column : 1;
    return {origin_.layer, origin_.line + static_cast<int>(line), shift + static_cast<int>(characters_)};
  }
  std::string_view text_;
  Place origin_;
  std::vector<size_t> line_starts_;
  size_t line_ = 0, bytes_ = 0, characters_ = 0;
};

// Builds the tree from parser events rather than from YAML::Node: those carry the places of aliases, show duplicate
// keys, and expand nothing.
class Builder final : public YAML::EventHandler {
 public:
  Builder(std::string_view text, Places& places, Problems& problems)
      : text_(text), places_(places), problems_(problems) {}
  ValuePtr root() const { return root_; }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (++documents_ > 1) throw YAML::ParserException(mark, "a config is one document: remove what follows '---'");
  }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    auto value = make(Value::Type::null, mark);
    // An empty list item has the mark of what follows it.
    const std::string_view rest =
        mark.pos >= 0 ? text_.substr(std::min<size_t>(text_.size(), static_cast<size_t>(mark.pos))) : "";
    const bool written = rest.starts_with('~') || to_lower(rest.substr(0, 4)) == "null";
    if (!written && !stack_.empty()) value->place = stack_.back().value->place;
    finish(value, anchor);
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    const auto found = anchors_.find(anchor);
    if (found == anchors_.end()) throw YAML::ParserException(mark, "the alias stands inside the value it names");
    auto copy = std::make_shared<Value>(*found->second);
    copy->place = places_.at(mark);
    alias_nodes_ += copy->nodes;
    if (alias_nodes_ > kMaxAliasNodes)
      throw YAML::ParserException(mark, fmt::format("the aliases stand for more than {} values", kMaxAliasNodes));
    check_depth(mark, copy->depth);
    add(std::move(copy));
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& text) override {
    auto value = make(Value::Type::scalar, mark);
    value->text = text;
    value->quoted = tag == "!";
    check_tag(*value, tag);
    if (text.find('\0') != std::string::npos) problems_.add(value->place, "the text contains a NUL character");
    finish(value, anchor);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(Value::Type::list, mark, tag, anchor);
  }
  void OnSequenceEnd() override { close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(Value::Type::map, mark, tag, anchor);
  }
  void OnMapEnd() override { close(); }

 private:
  struct Frame {
    std::shared_ptr<Value> value;
    YAML::anchor_t anchor = 0;
    bool have_key = false, keep = true;
    Entry entry;
    std::unordered_map<std::string, int> lines;  // of the keys so far
  };

  std::shared_ptr<Value> make(Value::Type type, const YAML::Mark& mark) {
    auto value = std::make_shared<Value>();
    value->type = type;
    value->place = places_.at(mark);
    return value;
  }
  void check_tag(const Value& value, const std::string& tag) {
    if (!tag.empty() && tag != "?" && tag != "!")
      problems_.add(value.place, fmt::format("YAML tags are not supported: remove '{}'", printable(tag)));
  }
  void check_depth(const YAML::Mark& mark, size_t below) {
    if (stack_.size() + below > kMaxDepth)
      throw YAML::ParserException(mark, fmt::format("nested deeper than {} levels", kMaxDepth));
  }
  void open(Value::Type type, const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) {
    check_depth(mark, 1);
    Frame frame;
    frame.value = make(type, mark);
    frame.anchor = anchor;
    check_tag(*frame.value, tag);
    stack_.push_back(std::move(frame));
  }
  void close() {
    Frame frame = std::move(stack_.back());
    stack_.pop_back();
    finish(frame.value, frame.anchor);
  }
  void finish(std::shared_ptr<Value> value, YAML::anchor_t anchor) {
    if (anchor) anchors_[anchor] = value;
    add(std::move(value));
  }
  void add(std::shared_ptr<Value> value) {
    if (stack_.empty()) {
      root_ = std::move(value);
      return;
    }
    Frame& frame = stack_.back();
    Value& parent = *frame.value;
    if (parent.is(Value::Type::map) && !frame.have_key) return take_key(frame, *value);
    parent.nodes += value->nodes;
    parent.depth = std::max(parent.depth, value->depth + 1);
    if (parent.is(Value::Type::list)) {
      parent.items.push_back(std::move(value));
      return;
    }
    frame.have_key = false;
    if (!frame.keep) return;
    frame.entry.value = std::move(value);
    parent.entries.push_back(std::move(frame.entry));
  }
  void take_key(Frame& frame, const Value& key) {
    frame.have_key = true;
    frame.keep = false;
    frame.entry = {key.text, key.place, nullptr};
    if (!key.is(Value::Type::scalar))
      return problems_.add(key.place, fmt::format("a key must be a word, got {}", shape_of(key)));
    if (key.text == "<<" && !key.quoted)
      return problems_.add(key.place, "'<<' (merge) is not supported: layer a whole file with `base: file.yaml`");
    const auto [earlier, fresh] = frame.lines.emplace(key.text, key.place.line);
    if (!fresh)
      return problems_.add(key.place,
                           fmt::format("key '{}' was already given at line {}", printable(key.text), earlier->second));
    frame.keep = true;
  }

  std::string_view text_;
  Places& places_;
  Problems& problems_;
  std::vector<Frame> stack_;
  std::map<YAML::anchor_t, ValuePtr> anchors_;
  size_t alias_nodes_ = 0;
  int documents_ = 0;
  ValuePtr root_;
};

// What yaml-cpp would accept, drop or report in riddles: bytes that are not text (4 is its end of file), tabs.
bool check_text(std::string_view text, Places& places, Problems& problems) {
  if (const size_t bad = find_invalid_utf8(text); bad != std::string_view::npos) {
    problems.add(places.at_offset(bad), "not UTF-8 text: save the file as UTF-8");
    return false;
  }
  bool indentation = true;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    if ((c < 0x20 && c != '\t' && c != '\n' && c != '\r') || c == 0x7F) {
      problems.add(places.at_offset(i), fmt::format("control character \\x{:02x}: this is not a text file", c));
      return false;
    }
    if (c == '\t' && indentation) {
      const size_t next = text.find_first_not_of(" \t\r", i);
      if (next != std::string_view::npos && text[next] != '\n' && text[next] != '#') {
        problems.add(places.at_offset(i), "tab in the indentation: YAML wants spaces");
        return false;
      }
    }
    indentation = c == '\n' || (indentation && (c == ' ' || c == '\t' || c == '\r'));
  }
  return true;
}

}  // namespace

const Entry* Value::find(std::string_view key) const {
  for (const Entry& entry : entries)
    if (entry.key == key) return &entry;
  return nullptr;
}

std::string shape_of(const Value& value) {
  switch (value.type) {
    case Value::Type::null:
      return "null";
    case Value::Type::list:
      return "a list";
    case Value::Type::map:
      return "a map";
    case Value::Type::scalar:
      break;
  }
  return fmt::format("'{}'{}", printable(value.text), value.quoted ? " in quotes" : "");
}

int Problems::add_layer(std::string name) {
  layers_.push_back(std::move(name));
  return static_cast<int>(layers_.size()) - 1;
}

void Problems::add(Place place, std::string message) {
  std::pair<Place, std::string> problem(place, std::move(message));
  if (full())
    ++more_;
  else if (std::find(found_.begin(), found_.end(), problem) == found_.end())  // stages of a run share most of what is wrong
    found_.push_back(std::move(problem));
}

void Problems::throw_if_any() {
  if (found_.empty()) return;
  std::stable_sort(found_.begin(), found_.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::string all;
  for (const auto& [place, message] : found_) {
    if (!all.empty()) all += '\n';
    all += fmt::format("{}:{}:{}: {}", layers_.at(static_cast<size_t>(place.layer)), place.line, place.column, message);
  }
  if (more_ > 0) all += fmt::format("\n... and {} more", more_);
  throw ConfigError(all);
}

ValuePtr parse_yaml(std::string_view text, Place origin, Problems& problems) {
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);  // byte order mark
  Places places(text, origin);
  if (!check_text(text, places, problems)) return nullptr;
  try {
    std::istringstream stream{std::string(text)};
    YAML::Parser parser(stream);
    Builder builder(text, places, problems);
    while (parser.HandleNextDocument(builder)) {
    }
    if (builder.root()) return builder.root();
    auto empty = std::make_shared<Value>();
    empty->place = origin;
    return empty;
  } catch (const YAML::Exception& e) {
    // Where the text ends too early yaml-cpp may give the mark of its beginning.
    const bool at_end = e.msg.starts_with("end of ") && e.mark.line <= 0 && e.mark.column <= 0;
    problems.add(at_end ? places.at_offset(text.size()) : places.at(e.mark), fmt::format("not valid YAML: {}", e.msg));
    return nullptr;
  }
}

ValuePtr merge(const ValuePtr& lower, const ValuePtr& upper, PlacesOf maps) {
  if (!lower || !upper->is(Value::Type::map) || !lower->is(Value::Type::map)) return upper;
  const Entry *below = lower->find("kind"), *above = upper->find("kind");
  if (below && above && above->value->text != below->value->text) return upper;
  auto merged = std::make_shared<Value>(*lower);
  if (maps == PlacesOf::upper) merged->place = upper->place;
  std::unordered_map<std::string_view, size_t> index;
  for (size_t i = 0; i < lower->entries.size(); ++i) index.emplace(lower->entries[i].key, i);
  for (const Entry& entry : upper->entries) {
    const auto found = index.find(entry.key);
    if (found == index.end()) {
      merged->entries.push_back(entry);
      continue;
    }
    Entry& slot = merged->entries[found->second];
    const bool both_maps = slot.value->is(Value::Type::map) && entry.value->is(Value::Type::map);
    if (!both_maps || maps == PlacesOf::upper) slot.place = entry.place;
    slot.value = merge(slot.value, entry.value, maps);
  }
  return merged;
}

std::string flow_text(const Value& value) {
  std::string out;
  switch (value.type) {
    case Value::Type::null:
      return "null";
    case Value::Type::scalar: {
      bool flag;
      double number;
      // A plain number or bool keeps its type; any other text is a string however it was written.
      if (!value.quoted && (!parse_bool(value.text, flag) || !parse_double(value.text, number))) return value.text;
      return string_text(value.text);
    }
    case Value::Type::list:
      for (const ValuePtr& item : value.items) out += (out.empty() ? "" : ", ") + flow_text(*item);
      return "[" + out + "]";
    case Value::Type::map:
      for (const Entry& entry : value.entries)
        out += (out.empty() ? "" : ", ") + string_text(entry.key) + ": " + flow_text(*entry.value);
      return "{" + out + "}";
  }
  return out;
}

}  // namespace fewstep::config
