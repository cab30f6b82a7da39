// Image distortions of known strength, and generators that are known to be bad: what an encoder has to see through.
#pragma once
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "src/tensor/tensor.h"

namespace fewstep::eval {

struct Distortion {
  std::string_view name;
  std::vector<double> levels;  // mild to strong
  std::string_view unit;
  Tensor (*apply)(const Tensor& images, double level, uint64_t seed);  // uint8 [N, C, H, W] -> same
};
// Gaussian blur, Gaussian noise, JPEG: five levels each.
std::span<const Distortion> distortions();

Tensor gaussian_blur(const Tensor& images, double sigma);             // sigma in pixels; edges repeat
Tensor add_noise(const Tensor& images, double sigma, uint64_t seed);  // sigma in grey levels; sample i keyed by i
Tensor jpeg_round_trip(const Tensor& images, int quality);
// What a generator does that lost modes: images of the first `classes` labels are replaced by those of the others, in
// turns, so that N stays. labels int64 [N] >= 0; at least one class must stay.
Tensor drop_classes(const Tensor& images, const Tensor& labels, int64_t classes);
Tensor down_up(const Tensor& images, int64_t factor);  // e.g. 28 -> 14 -> 28, antialiased bicubic

// One full-covariance Gaussian over pixels per class: every second-order statistic right, and plainly noise to the eye.
class ClassGaussian {
 public:
  ClassGaussian(const Tensor& images, const Tensor& labels);  // uint8 [N, C, H, W]; int64 [N] in [0, K)
  // Sample i: class labels[i], drawn from a generator keyed by (seed, i). uint8 [N, C, H, W].
  Tensor sample(const Tensor& labels, uint64_t seed) const;

 private:
  std::vector<int64_t> shape_;  // C, H, W
  Tensor means_, factors_;      // [K, P]; [K, P, P] lower Cholesky factors
};

// Row i takes position l from the tokens of a random training row: per-position marginals without any dependence.
// tokens int64 [N, L] -> [count, L].
Tensor independent_tokens(const Tensor& tokens, int64_t count, uint64_t seed);

}  // namespace fewstep::eval
