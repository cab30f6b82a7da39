#include "eval/numpy_random.h"

#include <bit>
#include <cmath>
#include <numeric>
#include <utility>

namespace fewstep::eval {

MeanStd mean_and_std(const std::vector<double>& values) {
  MeanStd out;
  const double n = static_cast<double>(values.size());
  for (const double v : values) out.mean += v / n;
  for (const double v : values) out.std += (v - out.mean) * (v - out.mean) / n;
  out.std = std::sqrt(out.std);
  return out;
}

uint32_t NumpyRandom::interval(uint32_t most) {
  if (most == 0) return 0;
  const uint32_t mask = 0xFFFFFFFFu >> std::countl_zero(most);
  while (true)
    if (const uint32_t value = static_cast<uint32_t>(engine_()) & mask; value <= most) return value;
}

std::vector<int64_t> NumpyRandom::permutation(int64_t n) {
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  for (size_t i = order.size(); i-- > 1;) std::swap(order[i], order[interval(static_cast<uint32_t>(i))]);
  return order;
}

}  // namespace fewstep::eval
