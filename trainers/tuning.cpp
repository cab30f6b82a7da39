#include "trainers/tuning.h"

#include <nlohmann/json.hpp>

#include <set>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/io/safetensors.h"
#include "src/tensor/ops.h"

namespace fewstep {

void describe_precision(config::Visitor& v, Precision& p) {
  static constexpr config::Choice kPrecisions[] = {{"float32", 0}, {"float64", 1}, {"bfloat16", 2}};
  v.field("precision", p, "float32; bfloat16: autocast; float64: for exact comparisons", kPrecisions);
}

at::ScalarType dtype_of(Precision p) { return p == Precision::float64 ? at::kDouble : at::kFloat; }

void describe(config::Visitor& v, LoraConfig& c) {
  v.field("rank", c.rank, "of the adapters; 0: all weights are trained", config::kNonNegative);
  v.field("alpha", c.alpha, "strength of the adapters is alpha / rank", config::kPositive);
  v.field("targets", c.targets, "ends of the names of the layers that get one; empty: all linear layers");
}

Tuning::Tuning(nn::Module& module, const LoraConfig& lora, std::string name, uint64_t seed)
    : module_(module), lora_(lora), name_(std::move(name)) {
  module_.requires_grad(!lora_.on());
  if (!lora_.on()) return;
  nn::add_adapter(module_, {.name = name_, .rank = lora_.rank, .alpha = lora_.alpha, .targets = lora_.targets}, seed);
  active_ = {{name_, 1.0}};
}

NamedTensors Tuning::parameters() const { return lora_.on() ? module_.adapter(name_) : module_.parameters(); }

TensorMap Tuning::merged_state() const {
  if (lora_.on()) return nn::merged_state(module_, name_);
  TensorMap out;
  for (const auto& [name, tensor] : module_.state()) out.emplace(name, tensor.detach());
  return out;
}

void Tuning::save_adapter(const std::filesystem::path& folder, const std::string& base, const std::string& task) const {
  if (!lora_.on()) return;
  TensorMap tensors;
  std::set<std::string> layers;  // for PEFT, to which an empty list means none; "to_out.0" rather than "0"
  for (const auto& [name, tensor] : module_.adapter(name_)) {
    tensors.emplace("base_model.model." + name, tensor.detach());
    const std::string layer = name.substr(0, name.rfind(".lora_"));
    size_t begin = layer.rfind('.');
    if (begin != std::string::npos && begin > 0 && std::isdigit(static_cast<unsigned char>(layer.back()))) begin = layer.rfind('.', begin - 1);
    layers.insert(layer.substr(begin + 1));  // npos + 1 is 0
  }
  make_directories(folder);
  write_json(folder / "adapter_config.json",
             {{"peft_type", "LORA"}, {"task_type", task.empty() ? Json() : Json(task)}, {"base_model_name_or_path", base},
              {"r", lora_.rank}, {"lora_alpha", lora_.alpha}, {"lora_dropout", 0.0},
              {"target_modules", lora_.targets.empty() ? Json(layers) : Json(lora_.targets)}, {"bias", "none"},
              {"fan_in_fan_out", false}, {"inference_mode", true}});
  io::write_safetensors(folder / "adapter_model.safetensors", tensors, {{"format", "pt"}});
}

int64_t count_elements(const NamedTensors& tensors) {
  int64_t count = 0;
  for (const auto& [name, tensor] : tensors) count += tensor.numel();
  return count;
}

}  // namespace fewstep
