#include "datasets/stored_samples.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace fewstep {
namespace {

// Files of other programs may have numbers for words.
std::string stored_word(const Json& word) { return word.is_string() ? word.get<std::string>() : word.dump(); }

}  // namespace

int64_t* store_micro(const MicroConditioning& micro, int64_t* row) {
  const auto numbers = micro_numbers(micro);
  int64_t* end = std::copy(numbers.begin(), numbers.end(), row);
  *end = micro.flipped ? 1 : 0;
  return end + 1;
}

MicroConditioning stored_micro(const int64_t* row) {
  std::array<int64_t, kMicroNumbers> numbers{};
  std::copy_n(row, kMicroNumbers, numbers.begin());
  return micro_of_numbers(numbers, row[kMicroNumbers] != 0);
}

Json stored_json(const std::string& text, const std::string& place) {
  Json json = Json::parse(text, nullptr, false);
  if (json.is_discarded()) fail<DataError>("{}: not JSON: '{}'", place, text);
  return json;
}

std::vector<std::string> stored_names(const std::string& text, const std::string& place) {
  const Json names = stored_json(text, place);
  if (!names.is_array()) fail<DataError>("{}: expected a list of names, found {}", place, names.dump());
  std::vector<std::string> out;
  for (const Json& name : names) out.push_back(stored_word(name));
  return out;
}

std::string attributes_text(const Sample& sample) {
  Json words = Json::object();
  for (const auto& [name, word] : sample.attributes) words[name] = word;
  return words.dump();
}

std::map<std::string, std::string> stored_attributes(const std::string& text, const std::string& place) {
  std::map<std::string, std::string> out;
  if (text.empty()) return out;
  const Json words = stored_json(text, place);
  if (!words.is_object()) fail<DataError>("{}: expected an object of attributes, found {}", place, words.dump());
  for (const auto& [name, word] : words.items()) out[name] = stored_word(word);
  return out;
}

}  // namespace fewstep
