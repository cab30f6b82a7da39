#include "src/nn/module.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <set>
#include <unordered_map>

#include "src/base/error.h"
#include "src/base/hash.h"
#include "src/base/log.h"
#include "src/base/text.h"
#include "src/nn/lora.h"
#include "src/tensor/modes.h"
#include "src/tensor/ops.h"
#include "src/tensor/rng.h"

namespace fewstep::nn {
namespace {

struct BuildTarget {
  at::Device device = at::kCPU;
  at::ScalarType dtype = at::kFloat;
};
thread_local BuildTarget build_target;
thread_local TapScope* tap_scope = nullptr;

std::string join(const std::string& prefix, std::string_view name) {
  return prefix.empty() ? std::string(name) : fmt::format("{}.{}", prefix, name);
}

bool starts_with_one(std::string_view name, const std::vector<std::string>& prefixes) {
  return std::any_of(prefixes.begin(), prefixes.end(), [&](const std::string& p) { return name.starts_with(p); });
}

// Buffers that checkpoints of the PyTorch world carry and that hold no information here.
bool harmless_extra(std::string_view name) {
  for (std::string_view tail : {"position_ids", "num_batches_tracked", "rotary_emb.inv_freq"})
    if (name == tail || (name.ends_with(tail) && name[name.size() - tail.size() - 1] == '.')) return true;
  return false;
}

// `now` holds the new value of `slot`. Same identity where the TensorImpl can take it (also for tied names and for
// handles that an optimiser or a data-parallel group keeps); a meta tensor cannot, and is replaced wherever it is tied.
void assign(Tensor& slot, const Tensor& now, std::unordered_map<c10::TensorImpl*, Tensor>* replaced) {
  if (slot.unsafeGetTensorImpl() == now.unsafeGetTensorImpl()) return;
  if (slot.is_meta() && !now.is_meta()) {
    Tensor& fresh = (*replaced)[slot.unsafeGetTensorImpl()];
    if (!fresh.defined()) {
      fresh = now.detach();
      fresh.set_requires_grad(slot.requires_grad());
    }
    return;
  }
  slot.set_data(now);
  if (slot.grad().defined()) slot.mutable_grad() = Tensor();  // of the old device or dtype
}

}  // namespace

BuildScope::BuildScope(at::Device device, at::ScalarType dtype)
    : was_device_(build_target.device), was_dtype_(build_target.dtype) {
  build_target = {device, dtype};
}
BuildScope::~BuildScope() { build_target = {was_device_, was_dtype_}; }

at::TensorOptions build_options() { return at::TensorOptions().device(build_target.device).dtype(build_target.dtype); }

// --- registration

void Module::parameter(std::string name, Tensor& slot, at::IntArrayRef shape) {
  slot = at::empty(shape, build_options());
  slot.set_requires_grad(true);
  slots_.push_back({std::move(name), &slot});
}

void Module::buffer(std::string name, Tensor& slot, at::IntArrayRef shape, at::ScalarType dtype) {
  slot = at::zeros(shape, build_options().dtype(dtype));
  slots_.push_back({std::move(name), &slot, /*is_buffer=*/true});
}

void Module::child(std::string name, Module& module) { children_.emplace_back(std::move(name), &module); }

void Module::tie(std::string name, Tensor& slot, const Tensor& source) {
  slot = source;
  slots_.push_back({std::move(name), &slot, /*is_buffer=*/false, /*tied=*/true});
}

void Module::reset(at::Generator&) {}

// --- listing

std::map<std::string, std::string> Module::tied_names() const {
  std::map<const void*, std::string> first;
  for (const NamedTensor& p : parameters()) first.emplace(p.tensor.unsafeGetTensorImpl(), p.name);
  std::map<std::string, std::string> out;
  const_cast<Module*>(this)->visit([&](const std::string& prefix, Module& module) {
    for (const Slot& slot : module.slots_) {
      const auto it = first.find(slot.tensor->unsafeGetTensorImpl());
      const std::string name = join(prefix, slot.name);
      if (it != first.end() && it->second != name) out.emplace(name, it->second);
    }
  });
  return out;
}

void Module::visit(const std::function<void(const std::string&, Module&)>& f, const std::string& prefix) {
  f(prefix, *this);
  for (auto& [name, module] : children_) module->visit(f, join(prefix, name));
}

void Module::collect(const std::string& prefix, NamedTensors* parameters, NamedTensors* buffers) const {
  for (const Slot& slot : slots_) {
    NamedTensors* list = slot.is_buffer ? buffers : parameters;
    if (slot.tied || list == nullptr || !slot.tensor->defined()) continue;
    list->push_back({join(prefix, slot.name), *slot.tensor});
  }
  for (const auto& [name, module] : children_) module->collect(join(prefix, name), parameters, buffers);
}

NamedTensors Module::parameters() const {
  NamedTensors all, out;
  collect("", &all, nullptr);
  std::set<const void*> seen;  // one module registered twice is listed under its first name
  for (NamedTensor& p : all)
    if (seen.insert(p.tensor.unsafeGetTensorImpl()).second) out.push_back(std::move(p));
  return out;
}

NamedTensors Module::buffers() const {
  NamedTensors out;
  collect("", nullptr, &out);
  return out;
}

NamedTensors Module::state() const {
  NamedTensors out = parameters();
  for (NamedTensor& b : buffers()) out.push_back(std::move(b));
  return out;
}

NamedTensors Module::adapter(std::string_view adapter_name) const {
  NamedTensors out;
  const_cast<Module*>(this)->visit([&](const std::string& name, Module& module) {
    if (const LoraSlots* slots = module.lora_slots())
      for (const LoraSlot& slot : *slots)
        if (slot.adapter == adapter_name) {
          out.push_back({join(name, "lora_A.weight"), slot.a});
          out.push_back({join(name, "lora_B.weight"), slot.b});
        }
  });
  return out;
}

int64_t Module::parameter_count() const {
  int64_t count = 0;
  for (const NamedTensor& p : parameters()) count += p.tensor.numel();
  return count;
}

NamedTensors Module::tagged(std::string_view tag) const {
  NamedTensors out;
  if (std::find(tags_.begin(), tags_.end(), tag) != tags_.end()) return parameters();
  std::set<const void*> seen;
  for (const auto& [name, module] : children_)
    for (const NamedTensor& p : module->tagged(tag))
      if (seen.insert(p.tensor.unsafeGetTensorImpl()).second) out.push_back({join(name, p.name), p.tensor});
  return out;
}

void Module::tag(std::string_view name) { tags_.emplace_back(name); }

// --- values

void Module::initialise(uint64_t seed) {
  const NoGrad no_grad;
  const std::function<void(const std::string&, Module&)> descend = [&](const std::string& name, Module& module) {
    for (auto& [child_name, c] : module.children_) descend(join(name, child_name), *c);
    at::Generator generator = generator_for(seed, Stream::init, 0, static_cast<int64_t>(fnv1a64(name)));
    module.reset(generator);
  };
  descend("", *this);
}

void Module::to(at::Device device) {
  convert([&](const Tensor& t) {
    if (t.device() == device) return t;
    return t.is_meta() ? at::empty(t.sizes(), t.options().device(device)) : t.to(device);
  });
}

void Module::to(at::ScalarType dtype) {
  convert([&](const Tensor& t) { return t.is_floating_point() ? t.to(dtype) : t; });
}

void Module::convert(const std::function<Tensor(const Tensor&)>& f) {
  const NoGrad no_grad;
  each_tensor([&](Tensor& slot, bool tied, Replacements* replaced) {
    if (!tied) assign(slot, f(slot.detach()), replaced);
  });
}

void Module::each_tensor(const std::function<void(Tensor&, bool, Replacements*)>& f) {
  Replacements replaced;
  std::vector<Tensor*> tensors;
  std::set<const void*> seen;
  visit([&](const std::string&, Module& module) {
    for (Slot& slot : module.slots_) {
      if (!slot.tensor->defined()) continue;
      tensors.push_back(slot.tensor);
      f(*slot.tensor, slot.tied || !seen.insert(slot.tensor->unsafeGetTensorImpl()).second, &replaced);
    }
    if (LoraSlots* slots = module.lora_slots())
      for (LoraSlot& slot : *slots)
        for (Tensor* t : {&slot.a, &slot.b}) {
          tensors.push_back(t);
          f(*t, false, &replaced);
        }
  });
  for (Tensor* t : tensors)
    if (const auto it = replaced.find(t->unsafeGetTensorImpl()); it != replaced.end()) *t = it->second;
}

void Module::requires_grad(bool on) {
  for (NamedTensor& p : parameters()) p.tensor.set_requires_grad(on);
}

void Module::train(bool on) {
  visit([&](const std::string&, Module& module) { module.training_ = on; });
}

// --- loading

namespace {

struct LoadReport {
  std::vector<std::string> missing, extra, shape;

  bool ok() const { return missing.empty() && extra.empty() && shape.empty(); }
  std::string text() const {
    std::string out;
    const auto part = [&](std::string_view title, const std::vector<std::string>& names) {
      constexpr size_t kShown = 20;
      if (names.empty()) return;
      out += fmt::format("\n  {} {}:", names.size(), title);
      for (size_t i = 0; i < std::min(names.size(), kShown); ++i) out += "\n    " + names[i];
      if (names.size() > kShown) out += fmt::format("\n    and {} more", names.size() - kShown);
    };
    part("missing", missing);
    part("not in the model", extra);
    part("of another shape", shape);
    return out;
  }
};

std::string sizes_text(const Tensor& t) { return fmt::format("[{}]", fmt::join(t.sizes(), ", ")); }

}  // namespace

void Module::load(const TensorMap& tensors, std::string_view where, const LoadOptions& options) {
  const NoGrad no_grad;
  const NamedTensors own = state();
  const std::map<std::string, std::string> ties = tied_names();
  TensorMap given = tensors;
  for (const auto& [name, first] : ties)  // a file may hold any or all names of a tied tensor
    if (const auto it = given.find(name); it != given.end()) {
      given.emplace(first, it->second);
      given.erase(name);
    }
  LoadReport report;
  std::vector<std::string> names;
  for (const auto& [name, tensor] : own) {
    names.push_back(name);
    const auto it = given.find(name);
    if (it == given.end()) {
      if (!starts_with_one(name, options.allow_missing)) report.missing.push_back(name);
    } else if (it->second.sizes() != tensor.sizes()) {
      report.shape.push_back(
          fmt::format("{}: {} in the file, {} in the model", name, sizes_text(it->second), sizes_text(tensor)));
    }
  }
  const std::set<std::string> known(names.begin(), names.end());
  for (const auto& [name, tensor] : given) {
    if (known.contains(name) || starts_with_one(name, options.allow_extra)) continue;
    if (harmless_extra(name)) {
      log::debug("{}: '{}' is not used", where, name);
      continue;
    }
    const std::string close = nearest(name, report.missing.empty() ? names : report.missing);
    report.extra.push_back(close.empty() ? name : fmt::format("{} (did you mean '{}'?)", name, close));
  }
  if (!report.ok()) fail<DataError>("{}: the tensors do not fit the model{}", where, report.text());
  load_tensors(own, given, options.zero_copy);
}

void Module::load_tensors(const NamedTensors& own, const TensorMap& tensors, bool zero_copy) {
  std::unordered_map<const void*, const Tensor*> source;
  for (const auto& [name, tensor] : own)
    if (const auto it = tensors.find(name); it != tensors.end()) source[tensor.unsafeGetTensorImpl()] = &it->second;
  each_tensor([&](Tensor& slot, bool tied, Replacements* replaced) {
    const auto it = source.find(slot.unsafeGetTensorImpl());
    if (tied || it == source.end()) return;
    const Tensor& from = *it->second;
    const bool same = from.scalar_type() == slot.scalar_type() && (slot.is_meta() || from.device() == slot.device());
    if (zero_copy && same) {
      assign(slot, from.detach(), replaced);
      slot.set_requires_grad(false);  // mapped files are read-only
      if (slot.is_meta()) (*replaced)[slot.unsafeGetTensorImpl()].set_requires_grad(false);
    } else if (slot.is_meta()) {
      assign(slot, from.detach().to(from.options().dtype(slot.scalar_type()), false, /*copy=*/true), replaced);
    } else {
      slot.copy_(from);
    }
  });
}

// --- modes

EvalMode::EvalMode(Module& module) : module_(module), was_(module.training()) { module_.train(false); }
EvalMode::~EvalMode() { module_.train(was_); }

Frozen::Frozen(Module& module) {
  for (const NamedTensor& p : module.parameters()) was_.emplace_back(p.tensor, p.tensor.requires_grad());
  module.requires_grad(false);
}
Frozen::~Frozen() {
  for (auto& [tensor, on] : was_) tensor.set_requires_grad(on);
}

// --- taps

const Tensor& tap(std::string_view name, const Tensor& value) {
  if (tap_scope == nullptr) return value;
  const auto& wanted = tap_scope->wanted_;
  if (wanted.empty() || std::find(wanted.begin(), wanted.end(), name) != wanted.end())
    tap_scope->values_.insert_or_assign(std::string(name), value);
  return value;
}

TapScope::TapScope(std::vector<std::string> wanted) : wanted_(std::move(wanted)), outer_(tap_scope) {
  tap_scope = this;
}
TapScope::~TapScope() { tap_scope = outer_; }

TapPause::TapPause() : was_(tap_scope) { tap_scope = nullptr; }
TapPause::~TapPause() { tap_scope = was_; }

// --- initialisers

void init_uniform(Tensor& t, double bound, at::Generator& generator) {
  if (t.is_meta()) return;
  const NoGrad no_grad;
  t.copy_(at::empty(t.sizes(), at::kFloat).uniform_(-bound, bound, generator));
}

void init_normal(Tensor& t, double std, at::Generator& generator) {
  if (t.is_meta()) return;
  const NoGrad no_grad;
  t.copy_(at::empty(t.sizes(), at::kFloat).normal_(0.0, std, generator));
}

}  // namespace fewstep::nn
