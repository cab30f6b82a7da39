#include "eval/numpy_random.h"

#include <bit>
#include <numeric>
#include <utility>

namespace fewstep::eval {

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
