// From a file name and a command line to one merged tree.
#pragma once
#include <filesystem>
#include <span>
#include <string>

#include "src/config/tree.h"

namespace fewstep::config {

// `path`, the chain of files its `base:` names below it, `overrides` above. Layers of `problems`: the named file, its
// bases downwards, the command line. ConfigError when `path` itself cannot be read; otherwise never null: what could
// not be read is an empty map, with `problems.incomplete` set.
ValuePtr load_layers(const std::filesystem::path& path, std::span<const std::string> overrides, Problems& problems);
// The overrides alone.
ValuePtr load_command_line(std::span<const std::string> overrides, Problems& problems);
// One layer without a folder: `base:` is refused.
ValuePtr load_text(const std::string& yaml, const std::string& name, Problems& problems);
// `root` without its key `without`, and over it the settings of `map`, whose keys may be dotted; places are kept.
ValuePtr lay_over(const ValuePtr& root, std::string_view without, const Value& map);

}  // namespace fewstep::config
