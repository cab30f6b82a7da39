#include "src/dist/world.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/dist/environment.h"
#include "src/dist/internal.h"
#include "src/tensor/ops.h"

namespace fewstep::dist {
namespace {

// One process: collectives have nobody to talk to.
class SingleWorld : public World {
 public:
  explicit SingleWorld(at::Device device) { device_ = device; }
  void all_reduce_sum(Tensor&) override {}
  void all_reduce_max(Tensor&) override {}
  void broadcast(Tensor&, int root) override { FEW_CHECK(root == 0, "broadcast from rank {} in a world of 1", root); }
  std::vector<Tensor> all_gather(const Tensor& t) override { return {t.detach().clone()}; }
  void barrier() override {}
  void announce_failure(std::string_view message) override { write_error_file(message); }
};

int visible_gpus() {
  if (!at::hasCUDA()) return 0;
  return c10::impl::VirtualGuardImpl(at::kCUDA).deviceCount();
}

// Chooses this rank's device and, for CUDA, makes it the thread's current one: NCCL binds to it.
at::Device choose_device(DeviceKind kind, const Place& place) {
  if (kind == DeviceKind::cpu) return at::kCPU;
  const int gpus = visible_gpus();
  if (kind == DeviceKind::automatic && gpus == 0) return at::kCPU;
#ifndef FEWSTEP_WITH_CUDA
  fail<ConfigError>(
      "device cuda: this binary was built without CUDA; use device cpu, or build one with "
      "`tools/setup.sh --cuda` and `cmake -S . -B build -DFEWSTEP_CUDA=ON`");
#endif
  if (gpus == 0)
    fail<ConfigError>(
        "device cuda: this process sees no GPU (nvidia-smi lists them; CUDA_VISIBLE_DEVICES is {}); use "
        "device cpu",
        process_environment("CUDA_VISIBLE_DEVICES").value_or("not set"));
  if (place.local_rank >= gpus)
    fail<ConfigError>("LOCAL_RANK={} but this host shows {} GPU{}: start at most {} process{} on it", place.local_rank,
                      gpus, gpus == 1 ? "" : "s", gpus, gpus == 1 ? "" : "es");
  const at::Device device(at::kCUDA, static_cast<c10::DeviceIndex>(place.local_rank));
  c10::impl::VirtualGuardImpl(at::kCUDA).setDevice(device);
  return device;
}

}  // namespace

std::unique_ptr<World> World::single(at::Device device) { return std::make_unique<SingleWorld>(device); }

std::unique_ptr<World> World::from_environment(const WorldOptions& options) {
  const Place place = find_place(process_environment, getppid());
  const double timeout = timeout_from(process_environment, options.timeout_seconds);
  const at::Device device = choose_device(options.device, place);
  if (place.size == 1) return single(device);
  return make_group_world(place, device, timeout);
}

void exit_now(int code) {
  std::fflush(nullptr);
  std::_Exit(code);
}

void write_error_file(std::string_view message) noexcept {
  try {
    const auto path = process_environment("TORCHELASTIC_ERROR_FILE");
    if (!path) return;
    // torch/distributed/elastic/multiprocessing/errors: the time stamp orders the failures of several ranks.
    const nlohmann::ordered_json content = {
        {"message",
         {{"message", std::string(message)},
          {"extraInfo", {{"py_callstack", std::string(message)}, {"timestamp", std::to_string(std::time(nullptr))}}}}}};
    std::ofstream(*path) << content.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << '\n';
  } catch (const std::exception&) {  // the failure being told matters more than telling it here
  }
}

}  // namespace fewstep::dist
