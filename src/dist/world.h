// The group of processes of a run: torchrun's, SLURM's or MPI's environment variables, or our own --nproc launcher.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "src/tensor/tensor.h"

namespace fewstep::dist {

enum class DeviceKind { automatic, cpu, cuda };

struct WorldOptions {
  DeviceKind device = DeviceKind::automatic;
  double timeout_seconds = 600;  // a collective slower than this fails the run (FEWSTEP_DIST_TIMEOUT overrides)
};

// One object per process, made first in main and destroyed last. Size 1 needs no process group: collectives are no-ops.
class World {
 public:
  static std::unique_ptr<World> from_environment(const WorldOptions& options = {});
  static std::unique_ptr<World> single(at::Device device = at::kCPU);
  virtual ~World() = default;
  int rank() const { return rank_; }
  int size() const { return size_; }
  int local_rank() const { return local_rank_; }
  at::Device device() const { return device_; }
  bool is_main() const { return rank_ == 0; }

  // In place, over all ranks; DistributedError naming the operation, this rank and, when known, the one that failed.
  virtual void all_reduce_sum(Tensor& t) = 0;
  virtual void all_reduce_max(Tensor& t) = 0;
  virtual void broadcast(Tensor& t, int root = 0) = 0;
  virtual std::vector<Tensor> all_gather(const Tensor& t) = 0;  // equal shapes
  virtual void barrier() = 0;
  // Tells the others, before this process dies, why: their next failing collective names this rank and the message.
  virtual void announce_failure(std::string_view message) = 0;

 protected:
  int rank_ = 0, size_ = 1, local_rank_ = 0;
  at::Device device_ = at::kCPU;
};

// Ends the process at once, without destructors or waiting for other ranks: after a DistributedError, an orderly exit
// would wait for collectives that never finish. Flushes stdio.
[[noreturn]] void exit_now(int code);

// Starts `nproc` copies of this program with torchrun's variables set (one port of its own), forwards SIGINT/SIGTERM, and
// returns the first failing rank's exit code; when one fails the others get SIGTERM, then SIGKILL after a grace period.
// `arguments` are without the program's name and must not ask for --nproc again.
int launch(int nproc, const std::vector<std::string>& arguments);

}  // namespace fewstep::dist
