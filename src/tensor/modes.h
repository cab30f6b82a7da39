// Modes are objects: set for a scope, put back at its end. Grad mode and autocast are thread-local.
#pragma once
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>

namespace fewstep {

using NoGrad = at::NoGradGuard;

// For loops of many small operators that never need gradients: also skips autograd's bookkeeping of views and versions, which
// is a third of such an operator's time. Unlike c10::InferenceMode it leaves ordinary tensors behind: a rotary table made
// meanwhile may be used in training later.
class Inference {
  NoGrad no_grad_;
  at::AutoDispatchBelowADInplaceOrView below_autograd_;
};

// Autocast on `device` to `dtype`; the weight cache is cleared when the outermost scope ends.
class Autocast {
 public:
  Autocast(at::DeviceType device, at::ScalarType dtype, bool enabled = true);
  ~Autocast();
  Autocast(const Autocast&) = delete;
  Autocast& operator=(const Autocast&) = delete;

 private:
  at::DeviceType device_;
  bool was_enabled_;
  at::ScalarType was_dtype_;
};

// Deterministic algorithms, cuDNN deterministic and without benchmark, CUBLAS workspace set: bitwise resume.
class Deterministic {
 public:
  explicit Deterministic(bool on = true);
  ~Deterministic();
  Deterministic(const Deterministic&) = delete;
  Deterministic& operator=(const Deterministic&) = delete;

 private:
  bool was_on_;
};

}  // namespace fewstep
