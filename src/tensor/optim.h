// AdamW on flat buffers (one fused call a group), clipping, learning-rate schedules, EMA.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "src/config/visitor.h"
#include "src/tensor/tensor.h"

namespace fewstep {

enum class LrSchedule { constant, cosine, linear };
// How the decay of the moving average rises to ema_decay, so that it forgets the random start. diffusers: after n updates
// min(ema_decay, (1 + n) / (10 + n)), 0 (a copy of the weights) at the first (EMAModel; sgm's LitEma is the same from n = 1).
enum class EmaWarmup { none, diffusers };

struct OptimizerConfig {
  double lr = 1e-3;
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
  double weight_decay = 0.0;   // on parameters with two or more dimensions only
  double clip_norm = 1.0;      // global L2 norm; 0: no clipping
  LrSchedule schedule = LrSchedule::cosine;
  int64_t warmup_steps = 0;    // linear from 0
  double final_lr_fraction = 0.0;  // of the peak, reached at the last step (cosine, linear)
  double ema_decay = 0.0;      // 0: no EMA
  EmaWarmup ema_warmup = EmaWarmup::none;
};
void describe(config::Visitor& v, OptimizerConfig& c);
// The decay of the EMA's update number `updates` (0-based).
double ema_decay(const OptimizerConfig& c, int64_t updates);

// Learning rate at `step` (0-based) of `total_steps`: (step + 1) / (warmup + 1) of the peak, so that the first update
// is not zero; the peak at step `warmup_steps`; the final fraction at step `total_steps - 1`.
double learning_rate(const OptimizerConfig& c, int64_t step, int64_t total_steps);

// Moves the parameters into one 64-byte-padded flat buffer per group (decayed, not decayed); each parameter and its
// gradient become views. Keep the Tensors' identity: modules and optimiser share storage from here on. Made once the
// initial weights are in place, on their device: the EMA starts as their copy, and Module::to would undo the sharing.
class AdamW {
 public:
  AdamW(NamedTensors parameters, const OptimizerConfig& config);
  void zero_grad();                          // in place: gradients stay views of the flat buffer
  Tensor grad_norm() const;                  // global L2 norm, float64 scalar on the parameters' device; no host sync
  void step(double lr, const Tensor& norm);  // clips by config.clip_norm with that norm, then one fused update a group
  void update_ema();                         // after step(); nothing when ema_decay is 0
  void swap_ema();                           // exchanges weights and EMA (sampling, validation); call twice to put back
  bool has_ema() const { return config_.ema_decay > 0; }
  const NamedTensors& parameters() const { return parameters_; }
  int64_t updates() const;                   // optimiser updates made

  // "exp_avg.<name>", "exp_avg_sq.<name>", "updates"; and "<name>" for the EMA, with a warm-up also "ema_updates". Shapes
  // are the parameters'. The tensors are the buffers themselves: write them out, or clone.
  TensorMap state() const;
  void load_state(const TensorMap& tensors);  // strict: Error lists missing, extra and misshapen names
  TensorMap ema_state() const;
  void load_ema_state(const TensorMap& tensors);

 private:
  struct Group {
    Tensor weight, grad, exp_avg, exp_avg_sq, ema, updates;  // flat; `updates` is the float step tensor of the kernel
    double weight_decay = 0;
    bool decayed = false;        // parameters of two or more dimensions; a group has one dtype and one device
    at::TensorOptions options;
  };
  static void allocate(Group& group, int64_t size);
  OptimizerConfig config_;
  NamedTensors parameters_;
  std::vector<Group> groups_;
  std::vector<std::pair<int, int64_t>> places_;  // parameter -> (group, offset)
  int64_t ema_updates_ = 0;    // its own number: an EMA may outlive the optimiser's moments
};

}  // namespace fewstep
