// A config file as a tree in which every value and key knows its place. Only tree.cpp knows yaml-cpp.
#pragma once
#include <compare>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace fewstep::config {

// Layers: the file that was named, its bases downwards, and last the command line. Lines and columns (in characters)
// count from 1.
struct Place {
  int layer = 0, line = 1, column = 1;
  auto operator<=>(const Place&) const = default;
};

struct Value;
using ValuePtr = std::shared_ptr<const Value>;
struct Entry {
  std::string key;
  Place place;  // of the key: a null's own mark is on another line
  ValuePtr value;
};
struct Value {
  enum class Type { null, scalar, list, map };
  Type type = Type::null;
  Place place;
  std::string text;  // of a scalar
  bool quoted = false;
  std::vector<ValuePtr> items;
  std::vector<Entry> entries;   // in file order, without duplicates
  size_t nodes = 1, depth = 1;  // of the subtree, aliases counted as often as they stand there

  bool is(Type t) const { return type == t; }
  const Entry* find(std::string_view key) const;
};
// "a map", "a list", "null", "'text'", "'5' in quotes"
std::string shape_of(const Value& value);

// Every problem of every layer; thrown together.
class Problems {
 public:
  int add_layer(std::string name);
  void set_layer_name(int layer, std::string name) { layers_[static_cast<size_t>(layer)] = std::move(name); }
  void add(Place place, std::string message);
  void throw_if_any();
  bool full() const { return found_.size() >= kMost; }
  bool any() const { return !found_.empty(); }
  // A layer could not be read: what is missing may stand there, so missing keys are not reported.
  bool incomplete = false;

 private:
  static constexpr size_t kMost = 200;
  std::vector<std::string> layers_;
  std::vector<std::pair<Place, std::string>> found_;
  size_t more_ = 0;
};

// Null pointer after a syntax error (reported). `origin`: place of the text's first character.
ValuePtr parse_yaml(std::string_view text, Place origin, Problems& problems);
// Maps key by key, all else replaced; a map that names another `kind` than the one below it replaces it whole. `lower`
// may be null. Where "key missing" is reported for a merged map: the upper file, but not a command line that set one
// key of it.
enum class PlacesOf { lower, upper };
ValuePtr merge(const ValuePtr& lower, const ValuePtr& upper, PlacesOf maps = PlacesOf::upper);
// One line of YAML that reads back to the same value: how `a.b=[1, 2]` would be typed.
std::string flow_text(const Value& value);

}  // namespace fewstep::config
