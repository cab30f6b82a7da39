// Which parameters of a network a run moves, and in which precision: all of them, or a low-rank adapter beside frozen ones.
#pragma once
#include <filesystem>
#include <string>
#include <vector>

#include "src/base/json.h"
#include "src/config/visitor.h"
#include "src/nn/lora.h"
#include "src/nn/module.h"

namespace fewstep {

enum class Precision { float32, float64, bfloat16 };
void describe_precision(config::Visitor& v, Precision& p);  // the key `precision`
at::ScalarType dtype_of(Precision p);                       // of the weights; bfloat16 is autocast over float32 weights

struct LoraConfig {
  int64_t rank = 0;                       // 0: all weights are trained
  double alpha = 16;
  std::vector<std::string> targets = {};  // ends of the names of the layers that get one; empty: all linear layers and convolutions
  bool on() const { return rank > 0; }
};
void describe(config::Visitor& v, LoraConfig& c);

// A network under fine-tuning. It must outlive this object.
class Tuning {
 public:
  // With lora.on() adds the adapter `name`, keyed by `seed`, to the module, which must be on its device, and freezes the rest;
  // otherwise unfreezes all. ConfigError when no layer is among the targets.
  Tuning(nn::Module& module, const LoraConfig& lora, std::string name, uint64_t seed);

  NamedTensors parameters() const;                    // those trained
  const std::vector<nn::ActiveAdapter>& active() const { return active_; }  // for nn::AdapterScope around every pass
  // The weights as a file of the whole network holds them: an adapter is merged, the module stays as it is.
  TensorMap merged_state() const;
  // Writes what PEFT loads onto the start network (adapter_config.json, adapter_model.safetensors); nothing without an adapter.
  // `base`: where the start network is; `task`: PEFT's task_type, empty for networks it has none for.
  void save_adapter(const std::filesystem::path& folder, const std::string& base, const std::string& task) const;

 private:
  nn::Module& module_;
  LoraConfig lora_;
  std::string name_;
  std::vector<nn::ActiveAdapter> active_;
};

int64_t count_elements(const NamedTensors& tensors);

}  // namespace fewstep
