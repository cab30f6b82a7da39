// What a DMD2 training is watched by while it runs. Each watch smooths one number of the metrics and warns once when that crosses
// its limit, and says so when it has come back by a tenth of the limit: a number that trembles about a limit does not flood the log.
//   score_gap          mean |xf - xr|, in deviations of a latent, by t: how far the student is from the teacher
//   critic_lag         fake score's loss on the student's samples / the frozen teacher's on the same: a fake score that is no better
//                      there than the teacher it started as does not follow the student
//   gradient_ratio     norm of DMD's gradient at x0 / that of the GAN
//   accuracy           of the discriminator, one watch for each metric whose name says so: it has won, the student learns nothing
//   diversity          distance between samples of one prompt / what it was at the run's start: collapse while it happens
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "src/config/visitor.h"
#include "src/tensor/tensor.h"

namespace fewstep {

struct Dmd2MonitorConfig {
  int64_t every = 10;             // cycles between two looks at score_gap, critic_lag, gradient_ratio and accuracies
  int64_t bins = 5;               // of t, for score_gap
  double max_score_gap = 1.0;
  double max_critic_lag = 1.1;
  double min_gradient_ratio = 0.1;
  double max_accuracy = 0.98;
  int64_t diversity_every = 100;  // iterations; 0: never
  int64_t prompts = 8, samples = 4;
  double min_diversity = 0.5;     // of the value at the start
};
void describe(config::Visitor& v, Dmd2MonitorConfig& c);

enum class Crossing { none, out, back };
struct WatchLimit {
  double limit = 0.0;  // 0: nothing is watched
  bool upper = true;   // the value may not be above it; false: not below
  double momentum = 0.8;  // of the smoothing
};
class Watch {
 public:
  explicit Watch(const WatchLimit& limit) : limit_(limit) {}
  Crossing see(double value);
  double smoothed() const { return smoothed_; }
  bool out() const { return out_; }
  Tensor state() const;  // float64 [3]
  void load_state(const Tensor& state);

 private:
  WatchLimit limit_;
  double smoothed_ = 0.0;
  bool seen_ = false, out_ = false;
};

class Dmd2Monitors {
 public:
  explicit Dmd2Monitors(const Dmd2MonitorConfig& config);
  // `means`: of this iteration, over all ranks. Adds what follows from several of them: critic_lag of critic_loss and
  // teacher_loss, gradient_ratio of gradient_dmd and gradient_gan, diversity of sample_distance, collapsed (0 or 1).
  // Warns on rank 0. The same on every rank.
  std::map<std::string, double> look(const std::map<std::string, double>& means, int64_t iteration);
  bool out(const std::string& name) const;  // the watch has warned, and the value is not back
  TensorMap state() const;
  void load_state(const TensorMap& state);  // DataError: not one of these

 private:
  Dmd2MonitorConfig config_;
  double first_distance_ = -1.0;  // between samples of one prompt at the run's start; < 0: not measured yet
  std::map<std::string, Watch> watches_;  // made when its number is first seen
};

// "score_gap[t<0.2]" ... "score_gap[t<1.0]"
std::vector<std::string> score_gap_names(int64_t bins);
// [G M, ...], M samples one after another for each of G prompts -> [G]: mean over pairs of a prompt's samples of their root mean
// square difference.
Tensor distance_within(const Tensor& samples, int64_t per_prompt);

}  // namespace fewstep
