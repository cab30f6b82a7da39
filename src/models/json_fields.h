// Reading JSON files of models and data: each key has a type, errors name the file, the key and the value.
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

// `E`: the kind of error. The JSON value must outlive the object.
template <class E>
class BasicJsonFields {
 public:
  BasicJsonFields(const Json& json, std::string_view where) : json_(json), where_(where) {
    if (!json.is_object()) fail<E>("{}: expected a JSON object, found {}", where, json.type_name());
  }
  // Absent or null: `target` keeps its value.
  void get(const char* key, int64_t& target) const {
    if (const Json* v = find(key)) target = expect(v->is_number_integer(), key, *v, "an integer").template get<int64_t>();
  }
  void get(const char* key, double& target) const {
    if (const Json* v = find(key)) target = expect(v->is_number(), key, *v, "a number").template get<double>();
  }
  void get(const char* key, bool& target) const {
    if (const Json* v = find(key)) target = expect(v->is_boolean(), key, *v, "true or false").template get<bool>();
  }
  void get(const char* key, std::string& target) const {
    if (const Json* v = find(key)) target = expect(v->is_string(), key, *v, "a string").template get<std::string>();
  }
  void get(const char* key, std::optional<int64_t>& target) const {
    const Json* v = find(key);
    if (v == nullptr) return;
    if (v->is_array() && !v->empty()) v = &v->front();  // several end tokens: the first one stands for them
    target = expect(v->is_number_integer(), key, *v, "an integer or null").template get<int64_t>();
  }
  void get(const char* key, std::vector<int64_t>& target) const {
    if (const Json* v = find(key)) target = list<int64_t>(key, *v, &Json::is_number_integer, "a list of integers");
  }
  void get(const char* key, std::vector<double>& target) const {
    if (const Json* v = find(key)) target = list<double>(key, *v, &Json::is_number, "a list of numbers");
  }
  void get(const char* key, std::vector<std::string>& target) const {
    if (const Json* v = find(key)) target = list<std::string>(key, *v, &Json::is_string, "a list of strings");
  }
  template <class T>
  void field(const char* key, T& target) const {  // the name that JsonWriter has
    get(key, target);
  }
  // The value of `key`, or `otherwise` where there is none.
  template <class T>
  T value(const char* key, T otherwise) const {
    get(key, otherwise);
    return otherwise;
  }
  std::string value(const char* key, const char* otherwise) const { return value(key, std::string(otherwise)); }
  // The value of a key that must be there.
  template <class T>
  T at(const char* key) const {
    if (find(key) == nullptr) fail<E>("{}: {} is missing", where_, key);
    return value(key, T());
  }
  // Absent and null count as not there.
  const Json* find(const char* key) const {
    const auto it = json_.find(key);
    return it == json_.end() || it->is_null() ? nullptr : &*it;
  }
  // The network computes only `only`: anything else is refused by name.
  void only(const char* key, std::string_view only_value) const {
    std::string found(only_value);
    get(key, found);
    if (found != only_value) refuse(key, found, only_value);
  }
  void only_all(const char* key, std::string_view only_value) const {  // of a list
    for (const std::string& found : value(key, std::vector<std::string>()))
      if (found != only_value) refuse(key, found, only_value);
  }
  const std::string& where() const { return where_; }

 private:
  const Json& expect(bool ok, const char* key, const Json& v, const char* what) const {
    if (!ok) fail<E>("{}: {}: expected {}, found {}", where_, key, what, v.dump());
    return v;
  }
  template <class T>
  std::vector<T> list(const char* key, const Json& v, bool (Json::*is)() const noexcept, const char* what) const {
    bool ok = v.is_array();
    if (ok)
      for (const Json& item : v) ok = ok && (item.*is)();
    return expect(ok, key, v, what).template get<std::vector<T>>();
  }
  [[noreturn]] void refuse(const char* key, std::string_view found, std::string_view only_value) const {
    fail<E>("{}: {} '{}' is not supported (only '{}')", where_, key, found, only_value);
  }
  const Json& json_;
  std::string where_;
};

using JsonFields = BasicJsonFields<ConfigError>;    // what a model is
using JsonDataFields = BasicJsonFields<DataError>;  // what a program wrote beside it: caches, records, golden cases

// The other direction: one list of keys, a template over Fields, reads a config with JsonFields and writes it with this.
class JsonWriter {
 public:
  explicit JsonWriter(Json& json) : json_(json) {}
  template <class T>
  void field(const char* key, const T& value) const {
    json_[key] = value;
  }

 private:
  Json& json_;
};
inline Json sorted_by_key(const Json& json) { return nlohmann::json(json); }  // as diffusers writes its files

}  // namespace fewstep::models
