// A distilled student's own account of itself: distillation.json of its model folder, held against its scheduler.
#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "src/base/json.h"

namespace fewstep {

struct DistilledModel {
  std::string method;                      // "pcm", "dmd2"
  std::vector<double> timesteps, sigmas;   // of the rungs, from noise
  std::string sampler;                     // "lcm", "ddim", "flow_euler"
  double guidance = 1;
  std::string teacher, teacher_sha256;     // a path, and its identity; may be empty
  std::map<std::string, std::string> training = {};  // numbers for a model card
  int64_t steps() const { return static_cast<int64_t>(timesteps.size()); }
  std::map<std::string, std::string> metadata() const;  // "distill.method", "distill.steps", ... for a safetensors file
};

// Nothing: the folder has no distillation.json. DataError: a malformed one. ConfigError: the folder's scheduler, asked for as many
// steps, does not give the levels that the student was trained at.
std::optional<DistilledModel> read_distilled_model(const std::filesystem::path& model);

}  // namespace fewstep
