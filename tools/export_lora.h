// fewstep export --format lora-peft|lora-kohya: the adapter of a run as one file, or as a folder with scheduler and model card.
#pragma once
#include <filesystem>
#include <map>
#include <optional>
#include <string>

#include "src/models/lora_names.h"
#include "src/tensor/tensor.h"

namespace fewstep {

struct LoraExport {
  models::LoraForm form = models::LoraForm::peft;
  std::optional<at::ScalarType> dtype = {};          // of A and B; nothing: as they were trained
  std::map<std::string, std::string> metadata = {};  // a key given here replaces ours
  std::filesystem::path results = {};                // results.json of eval, for the model card; empty: none
};

// `model`: a model folder with adapter/. `out`: a file *.safetensors, or a folder that is filled with
// pytorch_lora_weights.safetensors, scheduler/scheduler_config.json and README.md. Same model, same bytes. ConfigError: no adapter,
// a scheduler that does not give the trained levels, a layer without a name in this form.
void export_lora(const std::filesystem::path& model, const std::filesystem::path& out, const LoraExport& options);

}  // namespace fewstep
