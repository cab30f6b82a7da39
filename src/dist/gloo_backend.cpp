#define USE_C10D_GLOO
#include "src/dist/gloo_backend.h"

#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

namespace fewstep::dist {

BackendPtr make_gloo_backend(const StorePtr& store, int rank, int size, std::chrono::milliseconds timeout) {
  // create_default makes the transport device inside libtorch_cpu.so and honours GLOO_SOCKET_IFNAME.
  return c10::make_intrusive<c10d::ProcessGroupGloo>(store, rank, size,
                                                     c10d::ProcessGroupGloo::Options::create_default(timeout));
}

}  // namespace fewstep::dist
