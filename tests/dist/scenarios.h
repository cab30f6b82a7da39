// The scenarios of each test file, for main.
#pragma once
#include "tests/dist/ranks.h"

namespace fewstep::dist::testing {

std::map<std::string, Scenario> world_scenarios();
std::map<std::string, Scenario> launch_scenarios();
std::map<std::string, Scenario> data_parallel_scenarios();

}  // namespace fewstep::dist::testing
