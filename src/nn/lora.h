// Named LoRA adapters (Hu et al. 2021, arXiv 2106.09685): y = W x + sum_k s_k (alpha_k / r_k) B_k A_k x over the
// adapters that are active. Several live in one layer (student, fake score, discriminator on one frozen base), each saved
// apart.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "src/tensor/tensor.h"

namespace fewstep::nn {

class Module;

struct LoraSpec {
  std::string name = {};          // of the adapter: "student"
  int64_t rank = 16;
  double alpha = 16;              // strength alpha / rank
  std::vector<std::string> targets = {};  // ends of the full names of the layers that get the adapter; empty: all
};

// The adapters of one layer: A [r, in] (or [r, in, k, k]), B [out, r] (or [out, r, 1, 1]).
struct LoraSlot {
  std::string adapter;
  Tensor a, b;
  double scale = 1;  // alpha / rank
};
using LoraSlots = std::vector<LoraSlot>;

// Adds the adapter to every matching Linear and Conv2d: A ~ Kaiming uniform keyed by (seed, name), B = 0, so the
// function is unchanged. Returns the number of layers; ConfigError when nothing matches or the name is taken.
int64_t add_adapter(Module& module, const LoraSpec& spec, uint64_t seed);
void remove_adapter(Module& module, std::string_view adapter);
void load_adapter(Module& module, std::string_view adapter, const TensorMap& tensors, std::string_view where);
// W += strength * scale * B A, then removes it.
void merge_adapter(Module& module, std::string_view adapter, double strength = 1.0);
// What module.state() would hold after merge_adapter, while the module stays as it is: saving in the middle of training.
TensorMap merged_state(const Module& module, std::string_view adapter, double strength = 1.0);

// Which adapters take part, on this thread, while the scope lives: none, one, or a weighted sum. Without a scope: none.
struct ActiveAdapter {
  std::string name;
  double strength = 1.0;
};
class AdapterScope {
 public:
  explicit AdapterScope(std::vector<ActiveAdapter> active);
  ~AdapterScope();
  AdapterScope(const AdapterScope&) = delete;
  AdapterScope& operator=(const AdapterScope&) = delete;

 private:
  std::vector<ActiveAdapter> was_;
};
const std::vector<ActiveAdapter>& active_adapters();  // of this thread (recompute saves and restores it)

}  // namespace fewstep::nn
