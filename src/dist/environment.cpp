#include "src/dist/environment.h"

#include <charconv>
#include <cmath>
#include <cstdlib>

#include "src/base/error.h"

namespace fewstep::dist {
namespace {

// A whole number in [low, high].
int whole(const char* name, const std::string& text, int low, int high) {
  int value = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (code != std::errc{} || end != text.data() + text.size())
    fail<ConfigError>("environment variable {}='{}' is not a whole number", name, text);
  if (value < low || value > high)
    fail<ConfigError>("environment variable {}={} is outside [{}, {}]", name, value, low, high);
  return value;
}

constexpr int kMany = 1 << 20;

std::optional<int> optional_whole(const Lookup& variable, const char* name, int low, int high) {
  const auto text = variable(name);
  if (!text) return std::nullopt;
  return whole(name, *text, low, high);
}

// The names one launcher uses. `local_size` may be unknown to it.
struct Launcher {
  const char *name, *rank, *size, *local_rank, *local_size;
};
constexpr Launcher kTorchrun = {"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"};
constexpr Launcher kOpenMpi = {"OpenMPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
                               "OMPI_COMM_WORLD_LOCAL_SIZE"};
constexpr Launcher kMvapich = {"MVAPICH", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK",
                               "MV2_COMM_WORLD_LOCAL_SIZE"};
constexpr Launcher kPmi = {"PMI", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"};
constexpr Launcher kSlurmStep = {"SLURM", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", nullptr};
constexpr Launcher kSlurm = {"SLURM", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", nullptr};

// The innermost launcher: mpirun inside srun sets both, and then MPI's variables are the right ones.
const Launcher* find_launcher(const Lookup& variable) {
  if (variable("RANK") || variable("WORLD_SIZE")) return &kTorchrun;
  if (variable("OMPI_COMM_WORLD_RANK")) return &kOpenMpi;
  if (variable("MV2_COMM_WORLD_RANK")) return &kMvapich;
  const bool slurm = variable("SLURM_PROCID").has_value();
  // srun --mpi=pmi2 sets PMI_RANK too, but only hydra (MPICH, Intel MPI) tells the local rank.
  if (variable("PMI_RANK") && (!slurm || variable("MPI_LOCALRANKID"))) return &kPmi;
  if (slurm && variable("SLURM_STEP_NUM_TASKS")) return &kSlurmStep;
  // An sbatch script without srun has SLURM_PROCID=0 and the job's SLURM_NTASKS, but is one process.
  if (slurm && variable("SLURM_NTASKS") && variable("ENVIRONMENT") != "BATCH") return &kSlurm;
  return nullptr;
}

int required(const Lookup& variable, const Launcher& launcher, const char* name, int low) {
  const auto value = optional_whole(variable, name, low, kMany);
  if (!value)
    fail<ConfigError>(
        "environment variable {} is not set, but another of {}'s is: start every process with {}, or "
        "unset {} for a run of one process",
        name, launcher.name, launcher.name, name == launcher.rank ? launcher.size : launcher.rank);
  return *value;
}

bool names_this_host(const std::string& address) {
  return address == "localhost" || address == "::1" || address.starts_with("127.");
}

// Any port that all ranks of one job, and no other job, derive alike; below the ephemeral range.
int derived_port(uint64_t key) { return 10000 + static_cast<int>(key % 20000); }

void find_address(const Lookup& variable, int parent_pid, Place& place) {
  const bool slurm = place.launcher == "SLURM", mpi = !slurm && place.launcher != "torchrun";
  if (const auto address = variable("MASTER_ADDR")) {
    place.address = *address;
  } else if (slurm) {
    const auto nodes =
        variable("SLURM_STEP_NODELIST") ? variable("SLURM_STEP_NODELIST") : variable("SLURM_JOB_NODELIST");
    if (!nodes) fail<ConfigError>("neither MASTER_ADDR nor SLURM_JOB_NODELIST is set: where does rank 0 run?");
    place.address = first_host(*nodes);
  } else if (mpi && place.local_size == place.size) {
    place.address = "127.0.0.1";
  } else {
    fail<ConfigError>(
        "environment variable MASTER_ADDR is not set: export the host name of rank 0 ({} processes, "
        "started by {})",
        place.size, place.launcher);
  }
  if (const auto port = optional_whole(variable, "MASTER_PORT", 1, 65535)) {
    place.port = *port;
  } else if (slurm) {
    const int job = optional_whole(variable, "SLURM_JOB_ID", 0, INT32_MAX).value_or(0);
    const int step = optional_whole(variable, "SLURM_STEP_ID", 0, INT32_MAX).value_or(0);
    place.port = derived_port(static_cast<uint64_t>(job) + 257ull * static_cast<uint64_t>(step));
  } else if (mpi && place.local_size == place.size) {
    const auto job = variable("PMIX_NAMESPACE") ? variable("PMIX_NAMESPACE") : variable("OMPI_MCA_ess_base_jobid");
    place.port = derived_port(job ? std::hash<std::string>{}(*job) : static_cast<uint64_t>(parent_pid));
  } else {
    fail<ConfigError>("environment variable MASTER_PORT is not set: export one free port of {}", place.address);
  }
}

int find_local_rank(const Lookup& variable, const Launcher& launcher, const Place& place) {
  for (const char* name : {"LOCAL_RANK", launcher.local_rank})
    if (const auto value = optional_whole(variable, name, 0, kMany)) {
      const auto size = launcher.local_size ? optional_whole(variable, launcher.local_size, 1, kMany) : std::nullopt;
      if (size && *value >= *size)
        fail<ConfigError>("environment variable {}={} must be below {}={}", name, *value, launcher.local_size, *size);
      return *value;
    }
  if (place.size == 1) return 0;
  if (place.local_size == place.size || names_this_host(place.address)) return place.rank;
  fail<ConfigError>("environment variable LOCAL_RANK is not set: it chooses this process's GPU on its host");
}

}  // namespace

std::optional<std::string> process_environment(const char* name) {
  const char* value = std::getenv(name);
  if (!value || !*value) return std::nullopt;
  return std::string(value);
}

std::string first_host(std::string_view nodelist) {
  const size_t open = nodelist.find('['), comma = nodelist.find(',');
  if (open == std::string_view::npos || comma < open) return std::string(nodelist.substr(0, comma));
  const size_t close = nodelist.find(']', open);
  if (close == std::string_view::npos) fail<ConfigError>("SLURM_JOB_NODELIST='{}': '[' without ']'", nodelist);
  const std::string_view ranges = nodelist.substr(open + 1, close - open - 1);
  const std::string_view first = ranges.substr(0, ranges.find_first_of(",-"));
  if (first.empty()) fail<ConfigError>("SLURM_JOB_NODELIST='{}': empty '[]'", nodelist);
  // What follows the brackets belongs to the name as well: "rack[1-2]-gpu" or "rack[1-2]n[0-3]".
  std::string_view rest = nodelist.substr(close + 1);
  std::string host = std::string(nodelist.substr(0, open)) + std::string(first);
  return rest.empty() || rest.front() == ',' ? host : host + first_host(rest);
}

Place find_place(const Lookup& variable, int parent_pid) {
  Place place;
  const Launcher* launcher = find_launcher(variable);
  if (!launcher) return place;
  place.launcher = launcher->name;
  place.size = required(variable, *launcher, launcher->size, 1);
  place.rank = required(variable, *launcher, launcher->rank, 0);
  if (place.rank >= place.size)
    fail<ConfigError>("environment variable {}={} must be below {}={}", launcher->rank, place.rank, launcher->size,
                      place.size);
  if (launcher->local_size) place.local_size = optional_whole(variable, launcher->local_size, 1, kMany).value_or(1);
  if (place.local_size > place.size)
    fail<ConfigError>("environment variable {}={} is above {}={}", launcher->local_size, place.local_size,
                      launcher->size, place.size);
  if (place.size > 1) find_address(variable, parent_pid, place);
  place.local_rank = find_local_rank(variable, *launcher, place);
  place.restart = optional_whole(variable, "TORCHELASTIC_RESTART_COUNT", 0, kMany).value_or(0);
  place.agent_store = launcher == &kTorchrun && variable("TORCHELASTIC_USE_AGENT_STORE") == "True";
  return place;
}

double timeout_from(const Lookup& variable, double otherwise) {
  const auto text = variable("FEWSTEP_DIST_TIMEOUT");
  if (!text) return otherwise;
  char* end = nullptr;
  const double seconds = std::strtod(text->c_str(), &end);
  if (*end != '\0' || !std::isfinite(seconds) || seconds < 0.001 || seconds > 1e6)
    fail<ConfigError>("environment variable FEWSTEP_DIST_TIMEOUT='{}' is not a number of seconds in [0.001, 1e6]",
                      *text);
  return seconds;
}

}  // namespace fewstep::dist
