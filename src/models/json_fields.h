// Reading a model's config.json: each key has a type, errors name the file, the key and the value.
#pragma once
#include <fmt/ranges.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/error.h"
#include "src/base/json.h"

namespace fewstep::models {

class JsonFields {
 public:
  JsonFields(const Json& json, std::string_view where) : json_(json), where_(where) {
    if (!json.is_object()) fail<ConfigError>("{}: expected a JSON object, found {}", where, json.type_name());
  }
  // Absent or null: `target` keeps its value.
  void get(const char* key, int64_t& target) const {
    if (const Json* v = find(key)) target = expect(v->is_number_integer(), key, *v, "an integer").get<int64_t>();
  }
  void get(const char* key, double& target) const {
    if (const Json* v = find(key)) target = expect(v->is_number(), key, *v, "a number").get<double>();
  }
  void get(const char* key, bool& target) const {
    if (const Json* v = find(key)) target = expect(v->is_boolean(), key, *v, "true or false").get<bool>();
  }
  void get(const char* key, std::string& target) const {
    if (const Json* v = find(key)) target = expect(v->is_string(), key, *v, "a string").get<std::string>();
  }
  void get(const char* key, std::optional<int64_t>& target) const {
    const Json* v = find(key);
    if (v == nullptr) return;
    if (v->is_array() && !v->empty()) v = &v->front();  // several end tokens: the first one stands for them
    target = expect(v->is_number_integer(), key, *v, "an integer or null").get<int64_t>();
  }
  void get(const char* key, std::vector<int64_t>& target) const {
    if (const Json* v = find(key)) target = list<int64_t>(key, *v, &Json::is_number_integer, "a list of integers");
  }
  void get(const char* key, std::vector<std::string>& target) const {
    if (const Json* v = find(key)) target = list<std::string>(key, *v, &Json::is_string, "a list of strings");
  }
  // Absent and null count as not there.
  const Json* find(const char* key) const {
    const auto it = json_.find(key);
    return it == json_.end() || it->is_null() ? nullptr : &*it;
  }
  // The network computes only `only`: anything else is refused by name.
  void only(const char* key, std::string_view value) const {
    std::string found(value);
    get(key, found);
    if (found != value) fail<ConfigError>("{}: {} '{}' is not supported (only '{}')", where_, key, found, value);
  }
  const std::string& where() const { return where_; }

 private:
  const Json& expect(bool ok, const char* key, const Json& value, const char* what) const {
    if (!ok) fail<ConfigError>("{}: {}: expected {}, found {}", where_, key, what, value.dump());
    return value;
  }
  template <class T>
  std::vector<T> list(const char* key, const Json& value, bool (Json::*is)() const noexcept, const char* what) const {
    bool ok = value.is_array();
    if (ok)
      for (const Json& item : value) ok = ok && (item.*is)();
    return expect(ok, key, value, what).template get<std::vector<T>>();
  }
  const Json& json_;
  std::string where_;
};

}  // namespace fewstep::models
