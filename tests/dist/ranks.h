// Rank processes for tests: the test binary starts itself once per rank, with the name of a scenario.
#pragma once
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "src/dist/world.h"

namespace fewstep::dist::testing {

// What a rank runs; its result is the process's exit code.
using Scenario = int (*)();

// In main of the test binary: runs the scenario and exits when this process is a rank. "--scenario=NAME" as the first
// argument goes before the environment variable, so that a scenario can launch() another.
void run_as_rank(int argc, char** argv, const std::map<std::string, Scenario>& scenarios);

struct RankResult {
  int exit_code = -1;  // 128 + signal when killed by one
  std::string output;  // stdout and stderr
  double seconds = 0;  // until it ended
};

struct Spawn {
  int size = 2;
  double timeout_seconds = 60;                    // FEWSTEP_DIST_TIMEOUT of the ranks
  std::map<std::string, std::string> extra = {};  // further environment variables
};

// All ranks of one world, with torchrun's variables and rank 0 as the store's server.
std::vector<RankResult> spawn(const std::string& scenario, const Spawn& options = {});

// A rank's life as in the real main: the World outlives the try block, an Error is announced, and the exit code is its.
int with_world(const std::function<void(World&)>& body);

// One process of this binary that runs `scenario` with exactly these variables added; not waited for.
int start(const std::string& scenario, const std::map<std::string, std::string>& variables, const std::string& log);
RankResult wait_for(int pid, const std::string& log);

std::string scratch_folder();  // a fresh one a process, removed at exit
int free_port();

}  // namespace fewstep::dist::testing
