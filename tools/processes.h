// A command that runs as one process or as a group of them (--nproc, torchrun, srun, mpirun).
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "src/dist/world.h"

namespace fewstep {

// Starts `nproc` copies of this program with `arguments` (and this process's --log level) and waits for them; ExitWith
// when one fails.
void start_processes(int nproc, const std::vector<std::string>& arguments);

// Makes this process's world and runs `body` in it. In a group, a failure is told to the others before this process
// ends, without waiting for collectives that will never finish; a stop that all agreed on ends all of them with 130.
// `timeout_seconds` of a collective: above what one rank may compute while the others wait for it.
void run_in_world(dist::DeviceKind device, const std::function<void(dist::World&)>& body,
                  double timeout_seconds = dist::WorldOptions().timeout_seconds);

}  // namespace fewstep
