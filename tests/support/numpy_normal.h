// numpy.random.RandomState(seed).standard_normal: large sets of numbers that a Python script has as well, without a
// file. Its logarithm is the only operation that may differ between machines, by the last bit.
#pragma once
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

namespace fewstep::testing {

class NumpyNormal {
 public:
  explicit NumpyNormal(uint32_t seed) : engine_(seed) {}  // init_genrand, as std::mt19937
  std::vector<double> draw(int64_t n) {
    std::vector<double> out(static_cast<size_t>(n));
    for (double& x : out) x = next();
    return out;
  }

 private:
  // legacy_double: 53 bits of two outputs.
  double uniform() {
    const uint32_t a = static_cast<uint32_t>(engine_()) >> 5, b = static_cast<uint32_t>(engine_()) >> 6;
    return (a * 67108864.0 + b) / 9007199254740992.0;
  }
  // legacy_gauss: Marsaglia's polar method, the second of a pair first.
  double next() {
    if (has_spare_) {
      has_spare_ = false;
      return spare_;
    }
    double x = 0, y = 0, r2 = 0;
    do {
      x = 2.0 * uniform() - 1.0, y = 2.0 * uniform() - 1.0;
      r2 = x * x + y * y;
    } while (r2 >= 1.0 || r2 == 0.0);
    const double f = std::sqrt(-2.0 * std::log(r2) / r2);
    spare_ = f * x, has_spare_ = true;
    return f * y;
  }
  std::mt19937 engine_;
  double spare_ = 0;
  bool has_spare_ = false;
};

}  // namespace fewstep::testing
