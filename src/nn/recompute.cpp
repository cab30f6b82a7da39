#include "src/nn/recompute.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <algorithm>
#include <set>

#include "src/base/error.h"
#include "src/nn/lora.h"
#include "src/tensor/ops.h"

namespace fewstep::nn {
namespace {

using torch::autograd::Node;
using torch::autograd::SavedVariable;

// Autocast of one device type. Its weight cache is off within: a cast made without gradients would otherwise be handed
// to a later call that needs them.
struct AutocastState {
  at::DeviceType device;
  bool on, cache;
  at::ScalarType dtype;

  static AutocastState of(at::DeviceType device) {
    return {device, at::autocast::is_autocast_enabled(device), at::autocast::is_autocast_cache_enabled(),
            at::autocast::get_autocast_dtype(device)};
  }
  void set() const {
    at::autocast::set_autocast_enabled(device, on);
    at::autocast::set_autocast_dtype(device, dtype);
    at::autocast::set_autocast_cache_enabled(cache);
  }
};

// The default generators. fewstep's own draws are keyed and need no state; this is for at::dropout and the like. One
// state is 5 kB: nothing beside a block's activations.
struct GeneratorState {
  Tensor cpu, other;
  at::Device device;

  static Tensor get(at::Generator g) {
    const std::lock_guard<std::mutex> lock(g.mutex());
    return g.get_state();
  }
  static void put(at::Generator g, const Tensor& state) {
    const std::lock_guard<std::mutex> lock(g.mutex());
    g.set_state(state);
  }
  static GeneratorState of(at::Device device) {
    GeneratorState s{get(at::detail::getDefaultCPUGenerator()), {}, device};
    if (device.is_cuda()) s.other = get(at::globalContext().defaultGenerator(device));
    return s;
  }
  void set() const {
    put(at::detail::getDefaultCPUGenerator(), cpu);
    if (other.defined()) put(at::globalContext().defaultGenerator(device), other);
  }
};

// Puts a saved state in place, and the one before back at the end.
template <class State>
class Swapped {
 public:
  Swapped(State now, const State& wanted) : was_(std::move(now)) { wanted.set(); }
  ~Swapped() { was_.set(); }
  Swapped(const Swapped&) = delete;
  Swapped& operator=(const Swapped&) = delete;

 private:
  State was_;
};

struct RecomputeBackward : Node {
  std::function<Tensors(const Tensors&)> fn;
  std::vector<SavedVariable> inputs;
  std::vector<char> input_requires_grad;
  Tensors parameters;  // edges inputs.size() ... of this node
  AutocastState autocast;
  GeneratorState generators;
  std::vector<ActiveAdapter> adapters;

  RecomputeBackward(std::function<Tensors(const Tensors&)> f, at::Device device)
      : fn(std::move(f)), autocast(AutocastState::of(device.type())), generators(GeneratorState::of(device)),
        adapters(active_adapters()) {}

  std::string name() const override { return "RecomputeBackward"; }

  Tensors run_again(const Tensors& x) const {
    AutocastState wanted = autocast;
    wanted.cache = false;
    const Swapped<AutocastState> cast(AutocastState::of(autocast.device), wanted);
    const Swapped<GeneratorState> random(GeneratorState::of(generators.device), generators);
    const AdapterScope scope(adapters);
    const TapPause pause;
    const at::AutoGradMode grad_mode(true);
    return fn(x);
  }

  torch::autograd::variable_list apply(torch::autograd::variable_list&& grads) override {
    if (!fn) fail("recompute: backward through the same graph a second time; keep it with retain_graph");
    if (at::GradMode::is_enabled())
      fail("recompute: a gradient of a gradient (create_graph) is not supported; call the function plainly for it");
    Tensors x;
    for (size_t i = 0; i < inputs.size(); ++i) {
      const Tensor saved = inputs[i].unpack();
      x.push_back(saved.defined() ? saved.detach().requires_grad_(input_requires_grad[i] != 0) : saved);
    }
    const Tensors y = run_again(x);
    FEW_CHECK(y.size() == grads.size(), "recompute: {} outputs in forward, {} now", grads.size(), y.size());
    Tensors outputs, seeds, wanted;
    for (size_t i = 0; i < y.size(); ++i)
      if (grads[i].defined() && y[i].defined() && y[i].requires_grad()) {
        outputs.push_back(y[i]);
        seeds.push_back(grads[i]);
      }
    std::vector<size_t> edges;
    for (size_t i = 0; i < num_outputs(); ++i) {
      const Tensor& t = i < x.size() ? x[i] : parameters[i - x.size()];
      if (!t.defined() || !t.requires_grad() || !task_should_compute_output(i)) continue;
      wanted.push_back(t);
      edges.push_back(i);
    }
    torch::autograd::variable_list out(num_outputs());
    if (outputs.empty() || wanted.empty()) return out;
    // Not backward(): gradients must leave through this node's edges, where the outer pass, its hooks (c10d::Reducer)
    // and autograd::grad take them.
    Tensors g = torch::autograd::grad(outputs, wanted, seeds, /*retain_graph=*/false, /*create_graph=*/false,
                                      /*allow_unused=*/true);
    for (size_t i = 0; i < edges.size(); ++i) out[edges[i]] = std::move(g[i]);
    return out;
  }

  void release_variables() override {
    for (SavedVariable& s : inputs) s.reset_data();
    fn = nullptr;
  }
};

// Trainable tensors that the function may read: the module's parameters and those of the active adapters.
Tensors trainable(const Module& module) {
  Tensors out;
  std::set<const void*> seen;
  const auto add = [&](const NamedTensors& list) {
    for (const NamedTensor& p : list)
      if (p.tensor.requires_grad() && seen.insert(p.tensor.unsafeGetTensorImpl()).second) out.push_back(p.tensor);
  };
  add(module.parameters());
  for (const ActiveAdapter& a : active_adapters()) add(module.adapter(a.name));
  return out;
}

}  // namespace

Tensors recompute(const Module& module, const std::function<Tensors(const Tensors&)>& fn, const Tensors& inputs) {
  if (!at::GradMode::is_enabled()) return fn(inputs);
  Tensors parameters = trainable(module);
  const bool any_input = std::any_of(inputs.begin(), inputs.end(), [](const Tensor& t) { return t.requires_grad(); });
  if (parameters.empty() && !any_input) return fn(inputs);
  at::Device device = at::kCPU;
  for (const Tensor& t : inputs)
    if (t.defined()) device = t.device();
  auto node = c10::make_intrusive<RecomputeBackward>(fn, device);
  for (const Tensor& t : inputs) {
    node->inputs.emplace_back(t, /*is_output=*/false);
    node->input_requires_grad.push_back(t.defined() && t.requires_grad());
  }
  torch::autograd::edge_list edges = torch::autograd::collect_next_edges(inputs);
  for (const Tensor& p : parameters) edges.push_back(torch::autograd::impl::gradient_edge(p));
  node->set_next_edges(std::move(edges));
  node->parameters = std::move(parameters);
  Tensors out;
  {
    AutocastState no_cache = node->autocast;
    no_cache.cache = false;
    const Swapped<AutocastState> cast(node->autocast, no_cache);
    const at::AutoGradMode grad_mode(false);
    out = fn(inputs);
  }
  for (Tensor& o : out) {
    if (o.defined() && at::isFloatingType(o.scalar_type())) {
      o = o.detach();
      torch::autograd::set_history(o, node);
    } else {
      node->add_input_metadata(Node::undefined_input());  // keeps the numbering of outputs
    }
  }
  return out;
}

}  // namespace fewstep::nn
