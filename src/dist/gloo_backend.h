// c10d's backends behind two functions, so that their headers (and Gloo's, which the wheel lacks) stay in one file
// each.
#pragma once
#include <chrono>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

namespace fewstep::dist {

using StorePtr = c10::intrusive_ptr<c10d::Store>;
using BackendPtr = c10::intrusive_ptr<c10d::Backend>;

BackendPtr make_gloo_backend(const StorePtr& store, int rank, int size, std::chrono::milliseconds timeout);
// Only in builds with FEWSTEP_WITH_CUDA. Uses the calling thread's current device for the whole life of the group.
BackendPtr make_nccl_backend(const StorePtr& store, int rank, int size, int device, std::chrono::milliseconds timeout);

}  // namespace fewstep::dist
