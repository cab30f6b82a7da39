// README.md of an exported LoRA: what it is, how it is used, what it was measured at, hashes.
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "src/base/json.h"
#include "tools/distilled_model.h"

namespace fewstep {

struct LoraCard {
  std::string base;           // path or name of the model it was trained on
  std::string pipeline;       // _class_name of model_index.json
  std::string scheduler;      // _class_name of scheduler_config.json
  std::string component;      // "unet"
  std::string form, dtype;    // "peft", "float32"
  int64_t layers = 0, rank = 0;
  double alpha = 0;
  std::optional<DistilledModel> distilled = {};
  std::filesystem::path folder = {};   // with the files that are hashed
  std::filesystem::path results = {};  // results.json; empty: none
};
// Markdown with the front matter of model hubs. DataError for a results file that is none.
std::string lora_card(const LoraCard& card);

}  // namespace fewstep
