#include "src/config/diff.h"

#include <yaml-cpp/yaml.h>

#include <map>
#include <set>

namespace fewstep::config {
namespace {

void flatten(const YAML::Node& node, const std::string& path, std::map<std::string, std::string>& out) {
  if (!node.IsMap()) {
    YAML::Emitter text;
    text << YAML::Flow << node;
    out[path] = text.c_str();
    return;
  }
  for (const auto& entry : node) flatten(entry.second, path.empty() ? entry.first.Scalar() : path + "." + entry.first.Scalar(), out);
}

}  // namespace

std::vector<Difference> differences(const std::string& before_yaml, const std::string& after_yaml) {
  std::map<std::string, std::string> before, after;
  flatten(YAML::Load(before_yaml), "", before);
  flatten(YAML::Load(after_yaml), "", after);
  std::set<std::string> keys;
  for (const auto& [key, value] : before) keys.insert(key);
  for (const auto& [key, value] : after) keys.insert(key);
  std::vector<Difference> out;
  for (const std::string& key : keys) {
    const auto b = before.find(key), a = after.find(key);
    const std::string old_value = b == before.end() ? "(absent)" : b->second, new_value = a == after.end() ? "(absent)" : a->second;
    if (old_value != new_value) out.push_back({key, old_value, new_value});
  }
  return out;
}

}  // namespace fewstep::config
