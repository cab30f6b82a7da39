// Module: a named tree of parameters over plain ATen operators (DESIGN: modules are ours, autograd is libtorch's).
//
//   struct Mlp : nn::Module {
//     nn::Linear up, down;
//     Mlp(int64_t d) : up(d, 4 * d), down(4 * d, d) { child("up", up); child("down", down); }
//     Tensor operator()(const Tensor& x) const { return down(at::silu(up(x))); }
//   };
#pragma once
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "src/tensor/tensor.h"

namespace fewstep::nn {

// Device and dtype of parameters allocated while the scope lives (this thread); default CPU float32. On at::kMeta a
// model of any size costs nothing: counting parameters, planning memory.
class BuildScope {
 public:
  explicit BuildScope(at::Device device, at::ScalarType dtype = at::kFloat);
  ~BuildScope();
  BuildScope(const BuildScope&) = delete;
  BuildScope& operator=(const BuildScope&) = delete;

 private:
  at::Device was_device_;
  at::ScalarType was_dtype_;
};
at::TensorOptions build_options();  // of the innermost scope

struct LoadOptions {
  std::vector<std::string> allow_missing = {}, allow_extra = {};  // name prefixes
  bool zero_copy = false;  // frozen weights: parameters alias the given tensors (mmap) instead of copying
};

struct LoraSlot;

class Module {
 public:
  Module() = default;
  virtual ~Module() = default;
  Module(const Module&) = delete;  // registered pointers must stay valid: modules are neither copied nor moved
  Module& operator=(const Module&) = delete;

  // Dotted names in registration order. A tied parameter is listed once, under its first name. Adapters are apart.
  NamedTensors parameters() const;
  NamedTensors buffers() const;               // persistent ones: running statistics, codebooks
  NamedTensors state() const;                 // parameters, then buffers: what a weight file holds
  NamedTensors adapter(std::string_view adapter_name) const;  // its lora parameters, names as in PEFT without prefix
  int64_t parameter_count() const;

  // Uninitialised parameters become random: each leaf is drawn from a generator keyed by (seed, its full name), then
  // every parent may adjust (post-order reset).
  void initialise(uint64_t seed);
  // Strict by default: one Error lists missing, extra (with did-you-mean) and misshapen names. Copies with dtype
  // conversion; `where` names the source in messages.
  void load(const TensorMap& tensors, std::string_view where, const LoadOptions& options = {});

  void to(at::Device device);
  void to(at::ScalarType dtype);              // floating-point parameters and buffers
  void requires_grad(bool on);                // parameters, not adapters
  void train(bool on = true);
  bool training() const { return training_; }

  // Parameters whose module carries `tag` (set by tag(), inherited by children).
  NamedTensors tagged(std::string_view tag) const;
  void tag(std::string_view name);

  // Calls f(full name, module) for this module and all below, parents first.
  void visit(const std::function<void(const std::string&, Module&)>& f, const std::string& prefix = {});
  // The adapters of a layer that can hold some; nullptr for every other module.
  virtual std::vector<LoraSlot>* lora_slots() { return nullptr; }

 protected:
  // Allocates `slot` (uninitialised) with build_options() and registers it. The member outlives the registration.
  void parameter(std::string name, Tensor& slot, at::IntArrayRef shape);
  void buffer(std::string name, Tensor& slot, at::IntArrayRef shape, at::ScalarType dtype = at::kFloat);
  void child(std::string name, Module& module);
  // `slot` becomes the same tensor as `source` and is not listed again; files may hold it or not. `slot` may be a
  // parameter of a child: tie("head.weight", head.weight, embedding.weight).
  void tie(std::string name, Tensor& slot, const Tensor& source);
  // Draws this module's own parameters (children are done before). Default: nothing.
  virtual void reset(at::Generator& generator);

 private:
  struct Slot {
    std::string name;
    Tensor* tensor;
    bool is_buffer = false, tied = false;
  };
  void collect(const std::string& prefix, NamedTensors* parameters, NamedTensors* buffers) const;
  using Replacements = std::unordered_map<c10::TensorImpl*, Tensor>;  // meta tensor -> what takes its place
  // f(tensor, tied to one seen before, replacements) for parameters, buffers and adapters; then replaces.
  void each_tensor(const std::function<void(Tensor&, bool, Replacements*)>& f);
  void convert(const std::function<Tensor(const Tensor&)>& f);
  void load_tensors(const NamedTensors& own, const TensorMap& tensors, bool zero_copy);
  std::map<std::string, std::string> tied_names() const;  // every further name of a tensor -> its first name
  std::vector<Slot> slots_;
  std::vector<std::pair<std::string, Module*>> children_;
  std::vector<std::string> tags_;
  bool training_ = true;
};

// A list of equal blocks, named "0", "1", ...
template <class Block>
class ModuleList : public Module {
 public:
  template <class... Args>
  Block& add(Args&&... args) {
    blocks_.push_back(std::make_unique<Block>(std::forward<Args>(args)...));
    child(std::to_string(blocks_.size() - 1), *blocks_.back());
    return *blocks_.back();
  }
  size_t size() const { return blocks_.size(); }
  const Block& operator[](size_t i) const { return *blocks_[i]; }
  Block& operator[](size_t i) { return *blocks_[i]; }
  auto begin() const { return blocks_.begin(); }
  auto end() const { return blocks_.end(); }

 private:
  std::vector<std::unique_ptr<Block>> blocks_;
};

class EvalMode {  // train(false) for a scope
 public:
  explicit EvalMode(Module& module);
  ~EvalMode();
  EvalMode(const EvalMode&) = delete;
  EvalMode& operator=(const EvalMode&) = delete;

 private:
  Module& module_;
  bool was_;
};

class Frozen {  // requires_grad(false) for a scope, each parameter's flag put back
 public:
  explicit Frozen(Module& module);
  ~Frozen();
  Frozen(const Frozen&) = delete;
  Frozen& operator=(const Frozen&) = delete;

 private:
  std::vector<std::pair<Tensor, bool>> was_;
};

// tap("blocks.3.out", x) returns x; inside a TapScope (this thread) it is also recorded. Verify and feature extraction
// read inner values through it; outside a scope it costs one thread-local load.
const Tensor& tap(std::string_view name, const Tensor& value);
class TapScope {
 public:
  explicit TapScope(std::vector<std::string> wanted = {});  // empty: everything
  ~TapScope();
  TapScope(const TapScope&) = delete;
  TapScope& operator=(const TapScope&) = delete;
  const TensorMap& values() const { return values_; }

 private:
  friend const Tensor& tap(std::string_view, const Tensor&);
  std::vector<std::string> wanted_;
  TensorMap values_;
  TapScope* outer_;
};
class TapPause {  // nothing is recorded while it lives: a forward pass that is made again (recompute)
 public:
  TapPause();
  ~TapPause();
  TapPause(const TapPause&) = delete;
  TapPause& operator=(const TapPause&) = delete;

 private:
  TapScope* was_;
};

// Initialisers for reset(): drawn in float32 on the CPU, then converted, so that values do not depend on device or
// dtype. No-ops on meta tensors.
void init_uniform(Tensor& t, double bound, at::Generator& generator);  // U(-bound, bound)
void init_normal(Tensor& t, double std, at::Generator& generator);

}  // namespace fewstep::nn
