#include "src/nn/lora.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "src/base/error.h"
#include "src/base/hash.h"
#include "src/nn/layers.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"

namespace fewstep::nn {
namespace {

thread_local std::vector<ActiveAdapter> active;

bool targeted(const std::string& name, const std::vector<std::string>& targets) {
  if (targets.empty()) return true;
  return std::any_of(targets.begin(), targets.end(), [&](const std::string& t) {
    // "to_q" is the end of "blocks.0.to_q", not of "blocks.0.not_to_q".
    return name == t || (name.ends_with(t) && name[name.size() - t.size() - 1] == '.');
  });
}

// The layer's weight, and whether an adapter can be put beside it.
Tensor* weight_of(Module& module) {
  if (auto* linear = dynamic_cast<Linear*>(&module)) return &linear->weight;
  if (auto* conv = dynamic_cast<Conv2d*>(&module); conv != nullptr && conv->groups() == 1) return &conv->weight;
  return nullptr;
}

const LoraSlot* find(const LoraSlots& slots, std::string_view adapter) {
  for (const LoraSlot& slot : slots)
    if (slot.adapter == adapter) return &slot;
  return nullptr;
}

LoraSlot make_slot(const LoraSpec& spec, const Tensor& weight, at::Generator generator) {
  const int64_t out = weight.size(0);
  std::vector<int64_t> a = weight.sizes().vec(), b(a.size(), 1);
  a[0] = spec.rank;
  b[0] = out;
  b[1] = spec.rank;
  const bool half = weight.scalar_type() == at::kHalf || weight.scalar_type() == at::kBFloat16;
  const at::TensorOptions options = weight.options().dtype(half ? at::kFloat : weight.scalar_type());
  LoraSlot slot{spec.name, at::empty(a, options), at::zeros(b, options), spec.alpha / static_cast<double>(spec.rank)};
  // torch's kaiming_uniform_ with a = sqrt(5), as PEFT: the bound is 1 / sqrt(fan in).
  init_uniform(slot.a, 1.0 / std::sqrt(static_cast<double>(weight.numel() / out)), generator);
  slot.a.set_requires_grad(true);
  slot.b.set_requires_grad(true);
  return slot;
}

// W + strength * scale * B A: [out, r] x [r, in (k k)]; in float32 at least, rounded once.
Tensor with_delta(const Tensor& weight, const LoraSlot& slot, double strength) {
  const Tensor delta = at::mm(slot.b.flatten(1), slot.a.flatten(1)).view(weight.sizes());
  return at::add(weight.to(delta.scalar_type()), delta, strength * slot.scale).to(weight.scalar_type());
}

}  // namespace

int64_t add_adapter(Module& module, const LoraSpec& spec, uint64_t seed) {
  const NoGrad no_grad;
  if (spec.name.empty()) fail<ConfigError>("adapter: it needs a name");
  if (spec.rank < 1) fail<ConfigError>("adapter '{}': rank must be at least 1, got {}", spec.name, spec.rank);
  if (!module.adapter(spec.name).empty()) fail<ConfigError>("adapter '{}': the model has one of that name", spec.name);
  int64_t layers = 0;
  module.visit([&](const std::string& name, Module& m) {
    Tensor* weight = weight_of(m);
    if (weight == nullptr || !targeted(name, spec.targets)) return;
    const auto id = static_cast<int64_t>(fnv1a64(name + "/" + spec.name));
    m.lora_slots()->push_back(make_slot(spec, *weight, generator_for(seed, Stream::init, 0, id)));
    ++layers;
  });
  if (layers == 0)
    fail<ConfigError>("adapter '{}': no linear or convolution layer's name ends with one of: {}", spec.name,
                      fmt::join(spec.targets, ", "));
  return layers;
}

void remove_adapter(Module& module, std::string_view adapter) {
  if (module.adapter(adapter).empty()) fail("adapter '{}' is not in the model", adapter);
  module.visit([&](const std::string&, Module& m) {
    if (LoraSlots* slots = m.lora_slots())
      std::erase_if(*slots, [&](const LoraSlot& slot) { return slot.adapter == adapter; });
  });
}

void load_adapter(Module& module, std::string_view adapter, const TensorMap& tensors, std::string_view where) {
  const NoGrad no_grad;
  const NamedTensors own = module.adapter(adapter);
  if (own.empty()) fail("{}: adapter '{}' is not in the model: add it first", where, adapter);
  std::vector<std::string> problems;
  TensorMap known;
  for (const auto& [name, tensor] : own) {
    known.emplace(name, tensor);
    const auto it = tensors.find(name);
    if (it == tensors.end())
      problems.push_back(fmt::format("missing: {}", name));
    else if (it->second.sizes() != tensor.sizes())
      problems.push_back(fmt::format("another shape: {} is [{}] in the file, [{}] in the model", name,
                                     fmt::join(it->second.sizes(), ", "), fmt::join(tensor.sizes(), ", ")));
  }
  for (const auto& [name, tensor] : tensors)
    if (!known.contains(name)) problems.push_back(fmt::format("not in the model: {}", name));
  if (!problems.empty())
    fail<DataError>("{}: the tensors do not fit adapter '{}'\n  {}", where, adapter, fmt::join(problems, "\n  "));
  for (const auto& [name, tensor] : own) tensor.copy_(tensors.at(name));
}

void merge_adapter(Module& module, std::string_view adapter, double strength) {
  const NoGrad no_grad;
  module.visit([&](const std::string&, Module& m) {
    const LoraSlot* slot = m.lora_slots() == nullptr ? nullptr : find(*m.lora_slots(), adapter);
    if (slot == nullptr) return;
    Tensor& weight = *weight_of(m);
    weight.copy_(with_delta(weight, *slot, strength));
  });
  remove_adapter(module, adapter);
}

TensorMap merged_state(const Module& module, std::string_view adapter, double strength) {
  const NoGrad no_grad;
  TensorMap out;
  for (const auto& [name, tensor] : module.state()) out.emplace(name, tensor.detach());
  const_cast<Module&>(module).visit([&](const std::string& name, Module& m) {
    const LoraSlot* slot = m.lora_slots() == nullptr ? nullptr : find(*m.lora_slots(), adapter);
    if (slot == nullptr) return;
    const auto entry = out.find(name + ".weight");
    if (entry == out.end()) fail("adapter '{}': '{}' shares its weight with another layer: it cannot be merged alone", adapter, name);
    entry->second = with_delta(entry->second, *slot, strength);
  });
  return out;
}

AdapterScope::AdapterScope(std::vector<ActiveAdapter> now) : was_(std::move(active)) { active = std::move(now); }
AdapterScope::~AdapterScope() { active = std::move(was_); }

const std::vector<ActiveAdapter>& active_adapters() { return active; }

}  // namespace fewstep::nn
