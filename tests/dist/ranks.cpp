#include "tests/dist/ranks.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>

#include "src/base/error.h"

namespace fewstep::dist::testing {
namespace {

constexpr const char* kScenario = "FEWSTEP_TEST_SCENARIO";

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

std::string read_all(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

}  // namespace

void run_as_rank(int argc, char** argv, const std::map<std::string, Scenario>& scenarios) {
  std::string name;
  if (const char* value = std::getenv(kScenario)) name = value;
  constexpr std::string_view kArgument = "--scenario=";
  if (argc > 1 && std::string_view(argv[1]).starts_with(kArgument))
    name = std::string(argv[1]).substr(kArgument.size());
  if (name.empty()) return;
  int code = 1;
  try {
    code = scenarios.at(name)();
  } catch (const std::exception& e) {
    std::cerr << "unexpected: " << e.what() << std::endl;
  }
  exit_now(code);
}

int with_world(const std::function<void(World&)>& body) {
  std::unique_ptr<World> world;
  try {
    world = World::from_environment({.device = DeviceKind::cpu});
    body(*world);
    world.reset();
    return 0;
  } catch (const Error& e) {
    std::cerr << "error: " << e.what() << std::endl;
    if (world) world->announce_failure(e.what());
    return e.exit_code();
  }
}

int free_port() {
  const int s = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  bind(s, reinterpret_cast<sockaddr*>(&address), sizeof address);
  socklen_t length = sizeof address;
  getsockname(s, reinterpret_cast<sockaddr*>(&address), &length);
  close(s);
  return ntohs(address.sin_port);
}

std::string scratch_folder() {
  static const std::string folder = [] {
    std::string pattern = (std::filesystem::temp_directory_path() / "fewstep-dist-XXXXXX").string();
    if (!mkdtemp(pattern.data())) throw Error("mkdtemp failed for " + pattern);
    static struct Remover {
      std::string path;
      int owner = getpid();
      ~Remover() {
        if (getpid() == owner) std::filesystem::remove_all(path);
      }
    } remover{pattern};
    return pattern;
  }();
  return folder;
}

int start(const std::string& scenario, const std::map<std::string, std::string>& variables, const std::string& log) {
  const int pid = fork();
  if (pid != 0) return pid;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  const int file = open(log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  dup2(file, 1);
  dup2(file, 2);
  setenv(kScenario, scenario.c_str(), 1);
  for (const auto& [name, value] : variables) setenv(name.c_str(), value.c_str(), 1);
  execl("/proc/self/exe", "rank", static_cast<char*>(nullptr));
  _exit(127);
}

RankResult wait_for(int pid, const std::string& log) {
  int status = 0;
  waitpid(pid, &status, 0);
  RankResult result;
  result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  result.output = read_all(log);
  return result;
}

std::vector<RankResult> spawn(const std::string& scenario, const Spawn& options) {
  const std::string port = std::to_string(free_port());
  const double begin = now();
  std::vector<int> pids;
  const auto log_of = [&](size_t rank) { return scratch_folder() + "/" + scenario + "." + std::to_string(rank); };
  for (int rank = 0; rank < options.size; ++rank) {
    std::map<std::string, std::string> variables = {{"RANK", std::to_string(rank)},
                                                    {"WORLD_SIZE", std::to_string(options.size)},
                                                    {"LOCAL_RANK", std::to_string(rank)},
                                                    {"LOCAL_WORLD_SIZE", std::to_string(options.size)},
                                                    {"MASTER_ADDR", "127.0.0.1"},
                                                    {"MASTER_PORT", port},
                                                    {"OMP_NUM_THREADS", "1"},
                                                    {"FEWSTEP_DIST_TIMEOUT", std::to_string(options.timeout_seconds)}};
    for (const auto& [name, value] : options.extra) variables[name] = value;
    pids.push_back(start(scenario, variables, log_of(rank)));
  }
  std::vector<RankResult> results(pids.size());
  for (size_t left = pids.size(); left > 0;) {
    int status = 0;
    const int pid = waitpid(-1, &status, 0);
    for (size_t r = 0; r < pids.size(); ++r)
      if (pids[r] == pid) {
        results[r].exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        results[r].seconds = now() - begin;
        results[r].output = read_all(log_of(r));
        --left;
      }
  }
  return results;
}

}  // namespace fewstep::dist::testing
