#include "src/tensor/modes.h"

#include <ATen/autocast_mode.h>

#include <cstdlib>

#include "src/tensor/ops.h"

namespace fewstep {

Autocast::Autocast(at::DeviceType device, at::ScalarType dtype, bool enabled)
    : device_(device),
      was_enabled_(at::autocast::is_autocast_enabled(device)),
      was_dtype_(at::autocast::get_autocast_dtype(device)) {
  at::autocast::increment_nesting();
  at::autocast::set_autocast_dtype(device, dtype);
  at::autocast::set_autocast_enabled(device, enabled);
}

Autocast::~Autocast() {
  // The cache holds the cast weights: it must not outlive the step that the weights belong to.
  if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
  at::autocast::set_autocast_enabled(device_, was_enabled_);
  at::autocast::set_autocast_dtype(device_, was_dtype_);
}

namespace {

void set_deterministic(bool on) {
  at::Context& context = at::globalContext();
  context.setDeterministicAlgorithms(on, /*warn_only=*/false);
  context.setDeterministicCuDNN(on);
  context.setBenchmarkCuDNN(false);
  // The mode's second half writes NaN into every new buffer: a debugging aid that costs a pass each.
  context.setDeterministicFillUninitializedMemory(false);
}

}  // namespace

Deterministic::Deterministic(bool on) : was_on_(at::globalContext().deterministicAlgorithms()) {
  if (on) ::setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);  // cuBLAS refuses the mode without it
  set_deterministic(on);
}

Deterministic::~Deterministic() { set_deterministic(was_on_); }

}  // namespace fewstep
