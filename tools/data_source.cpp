#include "tools/data_source.h"

#include <CLI/CLI.hpp>

#include <algorithm>
#include <filesystem>

#include "datasets/latent_cache.h"
#include "datasets/packed.h"
#include "src/base/error.h"
#include "src/base/table.h"
#include "src/config/config.h"
#include "trainers/loop.h"

namespace fewstep {

// A file with nothing but `data:`.
struct DataRoot {
  std::unique_ptr<DatasetConfig> data;
};
void describe(config::Visitor& v, DataRoot& root) { v.field("data", root.data, "data set", dataset_kinds()); }

namespace {
namespace fs = std::filesystem;

void describe_kind(config::Visitor& v, void* config) { static_cast<DatasetConfig*>(config)->describe(v); }

template <class Config>
std::unique_ptr<Dataset> open_file(const DataArguments& a) {
  Config config;
  config.train = config.heldout = config.test = a.source;
  config::read_overrides(a.overrides, describe_kind, static_cast<DatasetConfig*>(&config));
  return config.build(data_split(a));
}

}  // namespace

Split data_split(const DataArguments& a) {
  return static_cast<Split>(find_entry(split_choices(), a.split, "split").value);
}

std::unique_ptr<Dataset> open_dataset(const DataArguments& a) {
  const Split split = data_split(a);
  std::vector<std::string> overrides = a.overrides;
  if (!a.kind.empty()) {
    if (!a.source.empty()) overrides.insert(overrides.begin(), a.source);  // with --kind every word is key=value
    auto config = find_entry(dataset_kinds(), a.kind, "data set kind").make();
    config::read_overrides(overrides, describe_kind, config.get());
    return config->build(split);
  }
  if (a.source.empty()) fail<ConfigError>("give a CONFIG, a packed .h5 file, or --kind with key=value");
  if (const auto extension = fs::path(a.source).extension(); extension == ".h5" || extension == ".hdf5")
    return is_latent_cache(a.source) ? open_file<LatentCacheConfig>(a) : open_file<PackedConfig>(a);
  const auto keys = config::top_level_keys(a.source);
  std::unique_ptr<DatasetConfig> data;
  if (std::find(keys.begin(), keys.end(), "trainer") != keys.end()) {
    data = std::move(config::load<RunConfig>(a.source, overrides).data);
  } else {
    data = std::move(config::load<DataRoot>(a.source, overrides).data);
  }
  if (!data) fail<ConfigError>("{}: no `data:` in it", a.source);
  return data->build(split);
}

CLI::App* add_data_action(CLI::App* data, const std::string& name, const std::string& help, DataArguments& a) {
  auto* command = data->add_subcommand(name, help);
  command->add_option("source", a.source, "YAML file with `data:`, or a packed .h5 file");
  command->add_option("overrides", a.overrides,
                      "key.path=value over the file; with --kind keys of the data set itself");
  command->add_option("--kind", a.kind,
                      "kind of data set, without a file: fashion_mnist, image_folder, coco, hdf5, tuxpaint_stamps ...");
  command->add_option("--split", a.split, "train, heldout or test")->check(CLI::IsMember(names_of(split_choices())));
  return command;
}

}  // namespace fewstep
