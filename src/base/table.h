// A table of named things: one line per entry, an unknown name is answered with the known ones.
#pragma once
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/error.h"
#include "src/base/text.h"

namespace fewstep {

template <class Entry>
std::vector<std::string> names_of(std::span<const Entry> table) {
  std::vector<std::string> names;
  for (const Entry& entry : table) names.emplace_back(entry.name);
  return names;
}

// `what` names the table in the message: "unknown metric: 'fidd' is not one of ...".
template <class Entry>
const Entry& find_entry(std::span<const Entry> table, std::string_view name, std::string_view what) {
  for (const Entry& entry : table)
    if (entry.name == name) return entry;
  fail<ConfigError>("unknown {}: {}", what, not_one_of(name, names_of(table)));
}

}  // namespace fewstep
