#define USE_C10D_NCCL
#define USE_CUDA
#include <c10/cuda/CUDAGuard.h>

#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include "src/dist/gloo_backend.h"

namespace fewstep::dist {

BackendPtr make_nccl_backend(const StorePtr& store, int rank, int size, int device, std::chrono::milliseconds timeout) {
  auto options = c10d::ProcessGroupNCCL::Options::create(/*is_high_priority_stream=*/false);
  options->timeout = timeout;
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  auto backend = c10::make_intrusive<c10d::ProcessGroupNCCL>(store, rank, size, options);
  backend->setBoundDeviceId(
      at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device)));  // connects now, not at first use
  return backend;
}

}  // namespace fewstep::dist
