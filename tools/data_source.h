// How the `data` commands name a data set.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "datasets/dataset.h"

namespace CLI {
class App;
}

namespace fewstep {

struct DataArguments {
  std::string source, kind, out, split = "train";
  std::vector<std::string> overrides;
  int64_t limit = 10000, threads = 0;
};
// A subcommand of `data` with the arguments that name a data set.
CLI::App* add_data_action(CLI::App* data, const std::string& name, const std::string& help, DataArguments& a);
Split data_split(const DataArguments& a);
// Four ways: a run's config, a file with `data:` only, a packed file or latent cache, or --kind with key=value.
std::unique_ptr<Dataset> open_dataset(const DataArguments& a);

}  // namespace fewstep
