// YAML file + its `base:` layers + command-line overrides -> struct, strictly; and back again.
#pragma once
#include <filesystem>
#include <memory>
#include <span>
#include <string>

#include "src/config/visitor.h"

namespace fewstep::config {

using DescribeRoot = void (*)(Visitor&, void*);
using MakeRoot = std::shared_ptr<void> (*)();  // a default struct, to check settings of the config itself; may be null

// Fills `root` from `path`. `overrides` are "optimizer.lr=1e-5" (YAML values), one more layer named "command line".
// Throws ConfigError listing every problem, one `file:line:column: message` a line, sorted by place.
void read_file(const std::filesystem::path& path, std::span<const std::string> overrides, DescribeRoot, void* root,
               MakeRoot = nullptr);
void read_string(const std::string& yaml, const std::string& name, DescribeRoot, void* root, MakeRoot = nullptr);
// A resolved config without its top-level key `under`, and over it settings that stood there.
void read_overlay(const std::string& yaml, const std::string& under, const Overrides& settings, DescribeRoot, void* root);
// No file at all: `key=value` arguments over the struct's own values.
void read_overrides(std::span<const std::string> overrides, DescribeRoot, void* root);
// Keys at the top of the file and its bases, to tell one kind of config from another. ConfigError when it cannot be read;
// other problems are left to read_file.
std::vector<std::string> top_level_keys(const std::filesystem::path& path);
std::string write_string(DescribeRoot, void* root);    // the resolved config; reading it gives the same struct
std::string explain_string(DescribeRoot, void* root);  // every key: type, default, range or choices, meaning

template <class T>
DescribeRoot describe_root() {
  return [](Visitor& v, void* p) { describe(v, *static_cast<T*>(p)); };
}
template <class T>
MakeRoot make_root() {
  return []() -> std::shared_ptr<void> { return std::make_shared<T>(); };
}
template <class T>
T load(const std::filesystem::path& path, std::span<const std::string> overrides = {}) {
  T t;
  read_file(path, overrides, describe_root<T>(), &t, make_root<T>());
  return t;
}
template <class T>
T parse(const std::string& yaml, const std::string& name = "<string>") {
  T t;
  read_string(yaml, name, describe_root<T>(), &t, make_root<T>());
  return t;
}
template <class T>
T overlay(const std::string& yaml, const std::string& under, const Overrides& settings) {
  T t;
  read_overlay(yaml, under, settings, describe_root<T>(), &t);
  return t;
}
template <class T>
std::string to_yaml(T& t) {
  return write_string(describe_root<T>(), &t);
}
template <class T>
std::string explain(T& t) {
  return explain_string(describe_root<T>(), &t);
}

}  // namespace fewstep::config
