// Who this process is: read from torchrun's, MPI's or SLURM's environment variables. No torch in here.
#pragma once
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace fewstep::dist {

struct Place {
  int rank = 0, size = 1;
  int local_rank = 0, local_size = 1;  // on this host; local_size 1 when unknown
  int restart = 0;                     // torchrun's attempt: 0, 1, ...
  std::string address;                 // where rank 0's (or the launcher's) store listens; empty when size is 1
  int port = 0;
  bool agent_store = false;  // the launcher already listens there: every rank is a client
  std::string launcher;      // "", "torchrun", "OpenMPI", "MVAPICH", "PMI", "SLURM": for messages
};

using Lookup = std::function<std::optional<std::string>(const char*)>;  // unset: nullopt
std::optional<std::string> process_environment(const char* name);       // getenv; an empty value counts as unset

// ConfigError naming the variable that is missing, not a number, or in contradiction to another.
Place find_place(const Lookup& variable, int parent_pid);

// Seconds a collective may take: FEWSTEP_DIST_TIMEOUT or `otherwise`.
double timeout_from(const Lookup& variable, double otherwise);

// "gpu[01-04,07],login" -> "gpu01"
std::string first_host(std::string_view nodelist);

}  // namespace fewstep::dist
