// The one description of a config struct: the same function reads it from YAML, writes it back and documents it.
//
//   struct OptimizerConfig { double lr = 1e-4; };
//   void describe(Visitor& v, OptimizerConfig& c) { v.field("lr", c.lr, "peak learning rate", kPositive); }
#pragma once
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace fewstep::config {

struct Range {
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
};
inline constexpr Range kAny{};
inline constexpr Range kPositive{std::numeric_limits<double>::denorm_min()};
inline constexpr Range kNonNegative{0.0};
inline constexpr Range kAtLeastOne{1.0};
inline constexpr Range kUnit{0.0, 1.0};

struct Choice {
  std::string_view name;
  int value;
};

// Settings of another config, as `a.b.c` -> YAML text of the value, in file order: rows of an experiment.
using Overrides = std::vector<std::pair<std::string, std::string>>;

class Visitor {
 public:
  virtual ~Visitor() = default;
  virtual void field(std::string_view key, bool& v, std::string_view doc) = 0;
  virtual void field(std::string_view key, int64_t& v, std::string_view doc, Range = kAny) = 0;
  virtual void field(std::string_view key, double& v, std::string_view doc, Range = kAny) = 0;
  virtual void field(std::string_view key, std::string& v, std::string_view doc) = 0;
  virtual void field(std::string_view key, std::vector<int64_t>& v, std::string_view doc, Range = kAny) = 0;
  virtual void field(std::string_view key, std::vector<double>& v, std::string_view doc, Range = kAny) = 0;
  virtual void field(std::string_view key, std::vector<std::string>& v, std::string_view doc) = 0;
  virtual void field(std::string_view key, Overrides& v, std::string_view doc) = 0;
  // Settings of the very config that is read (a stage of a run): reading a file also checks the config with them laid over it,
  // without the top-level key they stand under.
  virtual void settings_of_root(std::string_view key, Overrides& v, std::string_view doc) { field(key, v, doc); }

  template <class E>
    requires std::is_enum_v<E>
  void field(std::string_view key, E& v, std::string_view doc, std::span<const Choice> choices) {
    int i = static_cast<int>(v);
    choice(key, i, doc, choices);
    v = static_cast<E>(i);
  }
  // A nested struct: describe(Visitor&, T&) is found by argument-dependent lookup.
  template <class T>
    requires requires(Visitor& s, T& t) { describe(s, t); }
  void field(std::string_view key, T& v, std::string_view doc) {
    if (enter(key, doc)) {
      describe(*this, v);
      leave();
    }
  }
  // A list of structs, read item by item.
  template <class T>
    requires requires(Visitor& s, T& t) { describe(s, t); }
  void field(std::string_view key, std::vector<T>& v, std::string_view doc) {
    const int64_t n = enter_list(key, doc, static_cast<int64_t>(v.size()));
    if (n == kDocumentItem) {
      T example{};
      if (enter_item(0)) {
        describe(*this, example);
        leave();
      }
      return leave_list();
    }
    if (n < 0) return;  // not given, or not a list (reported)
    v.resize(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i)
      if (enter_item(i)) {
        describe(*this, v[static_cast<size_t>(i)]);
        leave();
      }
    leave_list();
  }
  // One of several kinds, chosen by the map's own `kind` key: `trainer: {kind: autoregressive, ...}`.
  // Table entries have `name` and `make()` returning std::unique_ptr<Base>; Base has `virtual void describe(Visitor&)`.
  // A null pointer stays null when the key is absent.
  template <class Base, class Table>
  void field(std::string_view key, std::unique_ptr<Base>& v, std::string_view doc, const Table& kinds) {
    std::vector<std::string> names;
    int current = -1;
    for (const auto& k : kinds) {
      if (v && v->kind() == k.name) current = static_cast<int>(names.size());
      names.emplace_back(k.name);
    }
    if (document_kinds(key, doc, names, current)) {
      for (size_t i = 0; i < names.size(); ++i) {
        document_kind(names[i]);
        if (static_cast<int>(i) == current)
          v->describe(*this);
        else
          kinds[i].make()->describe(*this);
        leave();
      }
      return leave();
    }
    if (!enter_kind(key, doc, v != nullptr)) return;
    const int chosen = kind(names, current);
    if (chosen < 0) return drop();
    if (chosen != current) v = kinds[static_cast<size_t>(chosen)].make();
    v->describe(*this);
    leave();
  }
  // The key must be given: there is no default that could be right.
  virtual void require(std::string_view key) = 0;
  // A check between fields, reported at `key`.
  virtual void check(bool ok, std::string_view key, std::string_view message) = 0;

 protected:
  virtual void choice(std::string_view key, int& v, std::string_view doc, std::span<const Choice>) = 0;
  virtual bool enter(std::string_view key, std::string_view doc) = 0;
  virtual bool enter_kind(std::string_view key, std::string_view doc, bool present) = 0;
  virtual int kind(std::span<const std::string> names, int current) = 0;  // index, or -1 after reporting
  // Number of items; -1: leave the list alone; kDocumentItem: describe one item of it, whatever it holds.
  virtual int64_t enter_list(std::string_view key, std::string_view doc, int64_t current) = 0;
  static constexpr int64_t kDocumentItem = -2;
  virtual bool enter_item(int64_t index) = 0;
  virtual void leave_list() = 0;
  virtual void leave() = 0;  // reports keys that no field asked for
  virtual void drop() = 0;   // leaves without that report
  // True where every kind shall be described, not the chosen one: document_kind(name) ... leave() for each, then leave().
  virtual bool document_kinds(std::string_view, std::string_view, std::span<const std::string>, int) { return false; }
  virtual void document_kind(std::string_view) {}
};

}  // namespace fewstep::config
