#include "src/config/diff.h"

#include <fmt/format.h>

#include <map>
#include <set>

#include "src/config/tree.h"

namespace fewstep::config {
namespace {

void flatten(const Value& value, const std::string& path, std::map<std::string, std::string>& out) {
  const bool of_maps = value.is(Value::Type::list) && !value.items.empty() && value.items.front()->is(Value::Type::map);
  if (of_maps)
    for (size_t i = 0; i < value.items.size(); ++i) flatten(*value.items[i], fmt::format("{}[{}]", path, i), out);
  if (of_maps) return;
  if (!value.is(Value::Type::map) || value.entries.empty()) {
    out[path] = flow_text(value);
    return;
  }
  for (const Entry& e : value.entries) flatten(*e.value, path.empty() ? e.key : path + "." + e.key, out);
}

std::map<std::string, std::string> leaves(const std::string& yaml, const std::string& name) {
  Problems problems;
  const ValuePtr tree = parse_yaml(yaml, {problems.add_layer(name), 1, 1}, problems);
  problems.throw_if_any();
  std::map<std::string, std::string> out;
  flatten(*tree, "", out);
  return out;
}

}  // namespace

std::vector<Difference> differences(const std::string& before_yaml, const std::string& after_yaml) {
  const auto before = leaves(before_yaml, "config before"), after = leaves(after_yaml, "config now");
  std::set<std::string> keys;
  for (const auto& [key, value] : before) keys.insert(key);
  for (const auto& [key, value] : after) keys.insert(key);
  std::vector<Difference> out;
  for (const std::string& key : keys) {
    const auto b = before.find(key), a = after.find(key);
    const std::string old_value = b == before.end() ? "(absent)" : b->second,
                      new_value = a == after.end() ? "(absent)" : a->second;
    if (old_value != new_value) out.push_back({key, old_value, new_value});
  }
  return out;
}

}  // namespace fewstep::config
