#include "trainers/stages.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "src/base/error.h"
#include "src/config/config.h"
#include "src/tensor/ops.h"
#include "trainers/loop.h"

namespace fewstep {
namespace {

// What would make it another run, or is counted over all stages.
bool may_be_set(const std::string& key) {
  static constexpr std::string_view kFixed[] = {"data", "loop", "trainer", "loop.steps", "loop.keep_last", "trainer.kind"};
  if (std::find(std::begin(kFixed), std::end(kFixed), key) != std::end(kFixed)) return false;
  return key.starts_with("data.") || key.starts_with("loop.") || key.starts_with("trainer.");
}

}  // namespace

void describe(config::Visitor& v, CarryConfig& c) {
  v.field("ema", c.ema, "the moving average goes on; false: it starts again as a copy of the weights");
  v.field("optimizer", c.optimizer, "the optimiser's moments go on; false: they start at zero");
}

void describe(config::Visitor& v, StageConfig& c) {
  v.require("name");
  v.field("name", c.name, "of the stage, in logs");
  v.require("steps");
  v.field("steps", c.steps, "optimiser steps of the stage", config::kAtLeastOne);
  v.settings_of_root("set", c.set, "keys of this config in the stage: data.*, trainer.*, loop.*");
  std::vector<std::string> refused;
  for (const auto& [key, value] : c.set)
    if (!may_be_set(key)) refused.push_back(key);
  v.check(refused.empty(), "set", fmt::format("a stage sets keys of data, trainer (not its kind) and loop (not steps, keep_last), not {}",
                                              fmt::join(refused, ", ")));
  v.field("carry", c.carry, "what goes on from the stage before, beside the weights");
}

int64_t total_steps(const std::vector<StageConfig>& stages) {
  int64_t total = 0;
  for (const StageConfig& s : stages) total += s.steps;
  return total;
}

int64_t Stage::loader_step(int64_t step) const {
  const int64_t batch = config->loop.batch_size;
  return (images_before + batch - 1) / batch + step - first;
}

std::vector<Stage> plan_stages(RunConfig& run) {
  const std::shared_ptr<RunConfig> itself(&run, [](RunConfig*) {});
  if (run.stages.empty()) return {{.name = "", .end = run.loop.steps, .carry = {}, .config = itself}};
  const std::string resolved = config::to_yaml(run);
  std::vector<Stage> out;
  int64_t first = 0, images = 0;
  for (const StageConfig& s : run.stages) {
    auto config = std::make_shared<RunConfig>(config::overlay<RunConfig>(resolved, "stages", s.set));
    out.push_back({s.name, first, first + s.steps, images, s.carry, config});
    first += s.steps;
    images += s.steps * config->loop.batch_size;
  }
  return out;
}

size_t stage_of(const std::vector<Stage>& stages, int64_t step) {
  size_t i = 0;
  while (i + 1 < stages.size() && step >= stages[i].end) ++i;
  return i;
}

std::map<std::string, TensorMap> carry_over(std::map<std::string, TensorMap> files, const std::map<std::string, TensorMap>& fresh,
                                            const CarryConfig& carry) {
  if (const auto own = fresh.find("optimizer"); own != fresh.end() && !carry.optimizer) files["optimizer"] = own->second;
  const auto own = fresh.find("ema");
  if (own == fresh.end()) return files;
  const TensorMap before = carry.ema ? files["ema"] : TensorMap();
  const TensorMap& weights = files["weights"];
  TensorMap ema;
  for (const auto& [name, tensor] : own->second) {
    const auto kept = before.find(name), weight = weights.find(name);
    // The count of updates, which no weight is called, starts at the fresh 0.
    ema.emplace(name, kept != before.end() ? kept->second : weight != weights.end() ? weight->second : tensor);
  }
  files["ema"] = std::move(ema);
  return files;
}

}  // namespace fewstep
