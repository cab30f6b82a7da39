#include "src/nn/kernels.h"

namespace fewstep::nn::kernels {

namespace baseline {
extern const Table table;
}
#ifdef FEW_KERNELS_AVX2
namespace avx2 {
extern const Table table;
}
#endif

const Table& table() {
#ifdef FEW_KERNELS_AVX2
  static const bool avx2_here = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2_here) return avx2::table;
#endif
  return baseline::table;
}

}  // namespace fewstep::nn::kernels
