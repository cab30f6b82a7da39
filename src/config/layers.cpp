#include "src/config/layers.h"

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <system_error>

#include "src/base/error.h"
#include "src/base/text.h"
#include "src/config/scalar.h"

namespace fewstep::config {
namespace fs = std::filesystem;
namespace {

constexpr size_t kMaxBytes = size_t{4} << 20;

ValuePtr empty_map(Place place) {
  auto value = std::make_shared<Value>();
  value->type = Value::Type::map;
  value->place = place;
  return value;
}

// The whole text, or why not.
std::string read_config_text(const fs::path& path, std::string& why) {
  std::error_code code;
  if (fs::is_directory(path, code)) return why = "is a folder, not a config file", "";
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file) return why = std::generic_category().message(errno ? errno : EIO), "";
  std::string text;
  char buffer[1 << 14];
  while (text.size() <= kMaxBytes && (file.read(buffer, sizeof buffer), file.gcount() > 0))
    text.append(buffer, static_cast<size_t>(file.gcount()));
  if (text.size() > kMaxBytes)
    return why = fmt::format("larger than {}: this is not a config file", human_bytes(kMaxBytes)), "";
  return text;
}

// The text of one layer as a map.
ValuePtr parse_layer(const std::string& text, int layer, Problems& problems) {
  const Place origin{layer, 1, 1};
  ValuePtr tree = parse_yaml(text, origin, problems);
  if (tree && tree->is(Value::Type::map)) return tree;
  if (tree && !tree->is(Value::Type::null))
    problems.add(tree->place,
                 fmt::format("expected `key: value` lines, got {}{}", shape_of(*tree),
                             tree->text.find(':') != std::string::npos ? " (is there a space after the colon?)" : ""));
  if (!tree || !tree->is(Value::Type::null)) problems.incomplete = true;
  return empty_map(origin);
}

ValuePtr without(const ValuePtr& map, std::string_view key) {
  auto copy = std::make_shared<Value>(*map);
  std::erase_if(copy->entries, [&](const Entry& e) { return e.key == key; });
  return copy;
}

std::string display(const fs::path& path) { return printable(path.string()); }

// Same file under another spelling must be seen as the same: ./a.yaml, x/../a.yaml, a link to it.
fs::path identity(const fs::path& path) {
  std::error_code code;
  const fs::path real = fs::weakly_canonical(path, code);
  return code ? path.lexically_normal() : real;
}

// Follows `base:` downwards, from the file the user named.
struct Chain {
  Problems& problems;
  std::vector<ValuePtr> trees;

  void follow(const fs::path& top) {
    fs::path path = top;
    std::vector<fs::path> seen;
    for (int layer = 0;; ++layer) {
      std::string why;
      const std::string text = read_config_text(path, why);
      if (!why.empty())
        throw ConfigError(fmt::format("{}: cannot be read: {}", display(path), why));  // the first: no place
      seen.push_back(identity(path));
      problems.add_layer(display(path));
      ValuePtr tree = parse_layer(text, layer, problems);
      const Entry* base = tree->find("base");
      trees.push_back(base ? without(tree, "base") : tree);
      if (!base) return;
      const fs::path next = resolve(*base, path, seen);
      if (next.empty()) {
        problems.incomplete = true;
        return;
      }
      path = next;
    }
  }

  // The base's path, or empty after reporting.
  fs::path resolve(const Entry& base, const fs::path& from, const std::vector<fs::path>& seen) {
    const Value& value = *base.value;
    if (!value.is(Value::Type::scalar) || value.text.empty()) {
      problems.add(base.place, fmt::format("base: expected the path of one YAML file, got {}", shape_of(value)));
      return {};
    }
    const fs::path path = (from.parent_path() / value.text).lexically_normal();
    const auto again = std::find(seen.begin(), seen.end(), identity(path));
    if (again != seen.end()) {
      problems.add(value.place,
                   fmt::format("base: {} is below itself: the files name each other in a circle", display(path)));
      return {};
    }
    std::string why;
    std::error_code code;
    if (fs::exists(path, code) && !fs::is_regular_file(path, code)) why = "it is not a file";
    if (why.empty()) read_config_text(path, why);
    if (why.empty()) return path;
    problems.add(value.place,
                 fmt::format("base: {} cannot be read: {} (the path is relative to the file that names it)",
                             display(path), why));
    return {};
  }
};

// The tree in which `value` stands at path[0].path[1]..., one map a part.
ValuePtr nested(const std::vector<std::string>& path, Place place, ValuePtr value) {
  for (auto part = path.rbegin(); part != path.rend(); ++part) {
    auto map = std::make_shared<Value>();
    map->type = Value::Type::map;
    map->place = place;
    map->entries.push_back({*part, place, std::move(value)});
    value = map;
  }
  return value;
}

// One `a.b.c=value` into the tree of the command line; a later one wins over an earlier one.
void add_override(const std::string& text, Place place, ValuePtr& root, Problems& problems) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos)
    return problems.add(place, fmt::format("'{}' is not of the form key.path=value", printable(text)));
  const std::vector<std::string> path = split(trim(std::string_view(text).substr(0, equals)), '.');
  if (std::any_of(path.begin(), path.end(), [](const std::string& part) { return trim(part).empty(); }))
    return problems.add(place, fmt::format("'{}' has an empty part in its key", printable(text)));
  if (path.size() > 64) return problems.add(place, "the key has more than 64 parts");
  if (path[0] == "base") return problems.add(place, "base: can only be given in a file");
  if (text.size() > kMaxBytes) return problems.add(place, "the value is too long");
  Place at = place;
  for (size_t i = 0; i <= equals; ++i) at.column += (static_cast<unsigned char>(text[i]) & 0xC0) != 0x80;
  // A shell takes the quotes off key="": nothing behind '=' is the empty string, not null.
  const std::string_view given = std::string_view(text).substr(equals + 1);
  ValuePtr value = parse_yaml(trim(given).empty() ? "\"\"" : given, at, problems);
  if (value) root = merge(root, nested(path, place, value));
}

ValuePtr load_overrides(std::span<const std::string> overrides, int layer, Problems& problems) {
  // Kinds first: `t.width=3 t.kind=x` means the same as `t.kind=x t.width=3`, but a new kind drops what stands below
  // it.
  ValuePtr root = empty_map({layer, 1, 1});
  const auto sets_kind = [](const std::string& text) {
    const std::string_view key = trim(std::string_view(text).substr(0, text.find('=')));
    return key == "kind" || key.ends_with(".kind");
  };
  for (const bool kinds : {true, false})
    for (size_t i = 0; i < overrides.size(); ++i)
      if (sets_kind(overrides[i]) == kinds)
        add_override(overrides[i], {layer, static_cast<int>(i) + 1, 1}, root, problems);
  return root;
}

struct Leaf {
  std::vector<std::string> path;
  Place place;
  ValuePtr value;
};
void collect_leaves(const Value& map, const std::vector<std::string>& path, std::vector<Leaf>& out) {
  for (const Entry& e : map.entries) {
    std::vector<std::string> below = path;
    for (std::string& part : split(e.key, '.')) below.push_back(std::move(part));
    if (e.value->is(Value::Type::map) && !e.value->entries.empty())
      collect_leaves(*e.value, below, out);
    else
      out.push_back({std::move(below), e.place, e.value});
  }
}

}  // namespace

ValuePtr load_layers(const fs::path& path, std::span<const std::string> overrides, Problems& problems) {
  Chain chain{problems, {}};
  chain.follow(path);
  ValuePtr merged;
  for (auto layer = chain.trees.rbegin(); layer != chain.trees.rend(); ++layer) merged = merge(merged, *layer);
  if (overrides.empty()) return merged;
  const int line = problems.add_layer("command line");
  return merge(merged, load_overrides(overrides, line, problems), PlacesOf::lower);
}

ValuePtr load_command_line(std::span<const std::string> overrides, Problems& problems) {
  const int layer = problems.add_layer("command line");
  return load_overrides(overrides, layer, problems);
}

ValuePtr lay_over(const ValuePtr& root, std::string_view leave_out, const Value& map) {
  std::vector<Leaf> leaves;
  collect_leaves(map, {}, leaves);
  ValuePtr settings;
  // Kinds first, as on the command line: a new kind drops what stands below it.
  for (const bool kinds : {true, false})
    for (const Leaf& leaf : leaves)
      if ((leaf.path.back() == "kind") == kinds) settings = merge(settings, nested(leaf.path, leaf.place, leaf.value));
  const ValuePtr rest = without(root, leave_out);
  return settings ? merge(rest, settings, PlacesOf::lower) : rest;
}

ValuePtr load_text(const std::string& yaml, const std::string& name, Problems& problems) {
  const int layer = problems.add_layer(printable(name));
  if (yaml.size() > kMaxBytes) {
    problems.add({layer, 1, 1}, fmt::format("larger than {}: this is not a config", human_bytes(kMaxBytes)));
    problems.incomplete = true;
    return empty_map({layer, 1, 1});
  }
  ValuePtr tree = parse_layer(yaml, layer, problems);
  const Entry* base = tree->find("base");
  if (!base) return tree;
  problems.add(base->place, "base: can only be given in a file");
  return without(tree, "base");
}

}  // namespace fewstep::config
