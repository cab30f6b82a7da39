// What packed files and latent caches store alike: numbers of framing as rows, attributes and names as JSON, a file a split.
#pragma once
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "datasets/dataset.h"
#include "src/base/error.h"

namespace fewstep {

inline constexpr int64_t kMicroColumns = kMicroNumbers + 1;  // int64: the six numbers, and `flipped`
int64_t* store_micro(const MicroConditioning& micro, int64_t* row);  // the place behind it
MicroConditioning stored_micro(const int64_t* row);

// `place` stands in the DataErrors for what is no JSON or another kind of it.
Json stored_json(const std::string& text, const std::string& place);
std::vector<std::string> stored_names(const std::string& text, const std::string& place);  // of classes: a list
std::string attributes_text(const Sample& sample);                                         // an object
std::map<std::string, std::string> stored_attributes(const std::string& text, const std::string& place);  // "": none

// The file of `split`, of a config with the keys train, heldout and test. ConfigError when it names none; `command` makes them.
template <class Config>
const std::string& file_of_split(const Config& config, Split split, std::string_view command) {
  const std::string& path = split == Split::train ? config.train : split == Split::heldout ? config.heldout : config.test;
  if (path.empty())
    fail<ConfigError>("data.{0} is not set: the {0} split is asked for (make its file with `{1} --split {0}`)", name_of(split),
                      command);
  return path;
}

}  // namespace fewstep
