// Which keys differ between two resolved configs.
#pragma once
#include <string>
#include <vector>

namespace fewstep::config {

struct Difference {
  std::string key;     // "trainer.transformer.hidden_size", "stages[1].steps"
  std::string before;  // YAML text; "(absent)" when the key is not there
  std::string after;
};
std::vector<Difference> differences(const std::string& before_yaml, const std::string& after_yaml);

}  // namespace fewstep::config
