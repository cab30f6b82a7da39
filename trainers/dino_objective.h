// The terms of DINO (Caron et al. 2021, arXiv 2104.14294): loss between views, centring, schedules, the watch on collapse, and
// nearest neighbours as the measure of features.
#pragma once
#include <cstdint>

#include "src/config/visitor.h"
#include "src/dist/world.h"
#include "src/tensor/tensor.h"

namespace fewstep {

// softmax((teacher - centre) / temperature), over the last dimension.
Tensor teacher_probabilities(const Tensor& teacher, const Tensor& centre, double temperature);
// Cross-entropy between views, eq. 3: mean over pairs (teacher view t, student view s != t) of -sum_k P_t log P_s.
// student: logits [V, B, K], the two global views first; teacher: probabilities [2, B, K]. Returns [B].
Tensor dino_loss(const Tensor& student, const Tensor& teacher, double student_temperature);

// 1 - (1 - start) (1 + cos(pi step / steps)) / 2: from `start` to 1.
double teacher_momentum(double start, int64_t step, int64_t steps);
// Linear from `first` to `last` over `warmup` steps.
double teacher_temperature(double first, double last, int64_t warmup, int64_t step);

// What a teacher gives on a whole batch. Collapse has two forms: every output the same peak (mean_entropy near 0), or every
// output uniform (entropy near log K); in both the outputs equal their mean: divergence near 0.
struct TeacherSpread {
  double entropy = 0;       // mean over outputs of H(P), nats
  double mean_entropy = 0;  // H(mean P)
  double divergence = 0;    // mean KL(P || mean P) = mean_entropy - entropy, at most log K
};

// The moving average of teacher logits (eq. 4), with the batch's statistics. Sums over micro-steps and ranks: centre and
// spread are those of the global batch. The average is of the batches seen, without the zero the paper begins with: its share
// fades over 1 / (1 - momentum) steps, in which all outputs share one peak and a short run's student would learn just that.
class TeacherCentre {
 public:
  TeacherCentre(int64_t prototypes, double momentum, at::TensorOptions options, dist::World& world);
  const Tensor& value() const { return centre_; }              // [K]
  void add(const Tensor& logits, const Tensor& probabilities);  // [2, B, K] each, of a micro-step
  // Update n (from 1): centre <- centre + (1 - m) / (1 - m^n) (mean of the logits added since the last one - centre); the
  // spread of those outputs. `move` false: the spread alone.
  TeacherSpread update(bool move);
  TensorMap state() const;
  void load_state(const TensorMap& tensors);  // DataError for a missing or misshapen entry

 private:
  Tensor centre_, sums_;  // [K]; float64 [2 K + 2]: logits, probabilities, entropies, rows
  double momentum_;
  dist::World& world_;
  int64_t updates_ = 0;
};

enum class CollapseAction { warn, stop };
struct CollapseConfig {
  double limit = 0.02;      // of divergence / log K
  int64_t after = 100;      // steps before the watch begins: at first all outputs are alike
  int64_t patience = 50;    // steps in a row below the limit
  CollapseAction action = CollapseAction::warn;
};
void describe(config::Visitor& v, CollapseConfig& c);

// Counts steps in a row below the limit.
class CollapseWatch {
 public:
  explicit CollapseWatch(const CollapseConfig& config) : config_(config) {}
  // True once `patience` steps in a row were below: it warns at the first of them, or stops the run (NumericError).
  bool see(const TeacherSpread& spread, int64_t prototypes, int64_t step);
  int64_t count() const { return count_; }
  void set_count(int64_t count) { count_ = count; }

 private:
  CollapseConfig config_;
  int64_t count_ = 0;
};

// Classes of `queries` [Q, D] by a vote of the k nearest rows of `bank` [N, D] by cosine, weighted exp(cosine / 0.07) as DINO's
// evaluation does. labels: int64 [N] in [0, classes). Returns int64 [Q].
Tensor nearest_neighbour_classes(const Tensor& queries, const Tensor& bank, const Tensor& labels, int64_t k, int64_t classes);

}  // namespace fewstep
