#include "tools/processes.h"

#include "src/base/error.h"
#include "src/base/log.h"
#include "tools/commands.h"

namespace fewstep {
namespace {

[[noreturn]] void leave_group(dist::World& world, const std::exception& e) {
  const auto* known = dynamic_cast<const Error*>(&e);
  if (!dynamic_cast<const DistributedError*>(&e)) world.announce_failure(e.what());
  log::error("{}", e.what());
  dist::exit_now(known ? known->exit_code() : 1);
}

}  // namespace

void start_processes(int nproc, const std::vector<std::string>& arguments) {
  static constexpr const char* kLevels[] = {"debug", "info", "warning", "error"};
  std::vector<std::string> all = {"--log", kLevels[static_cast<int>(log::level())]};
  all.insert(all.end(), arguments.begin(), arguments.end());
  const int code = dist::launch(nproc, all);
  if (code != 0) throw ExitWith{code};  // the rank has said why
}

void run_in_world(dist::DeviceKind device, const std::function<void(dist::World&)>& body, double timeout_seconds) {
  const auto world = dist::World::from_environment({.device = device, .timeout_seconds = timeout_seconds});
  log::set_rank(world->rank(), world->size());
  try {
    body(*world);
  } catch (const Interrupted& e) {
    if (world->size() == 1) throw;
    world->barrier();  // every rank stops after the same step: nothing failed
    if (world->is_main()) log::warn("{}", e.what());
    dist::exit_now(e.exit_code());
  } catch (const std::exception& e) {
    if (world->size() == 1) throw;
    leave_group(*world, e);
  }
}

}  // namespace fewstep
