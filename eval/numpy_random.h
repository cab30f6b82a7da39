// numpy's rules where other tools' numbers hang on them: the permutations of numpy.random.RandomState, and numpy.std.
#pragma once
#include <cstdint>
#include <random>
#include <vector>

namespace fewstep::eval {

struct MeanStd {
  double mean = 0, std = 0;  // std of the population, as numpy.std
};
MeanStd mean_and_std(const std::vector<double>& values);

class NumpyRandom {
 public:
  explicit NumpyRandom(uint32_t seed)
      : engine_(seed) {}  // RandomState(seed): MT19937 seeded by init_genrand, as std::mt19937
  // permutation(n), and choice(n, size, replace=False), which is its first `size` entries.
  std::vector<int64_t> permutation(int64_t n);

 private:
  uint32_t interval(uint32_t most);  // uniform in [0, most], by masked rejection
  std::mt19937 engine_;
};

}  // namespace fewstep::eval
