// `--nproc N` for people without torchrun: the same variables, one host, no restarts.
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <thread>

#include "src/base/error.h"
#include "src/base/log.h"
#include "src/dist/internal.h"

namespace fewstep::dist {
namespace {

using std::chrono::steady_clock;

// After a failure: time for the others to report it themselves, then SIGTERM, then SIGKILL.
constexpr std::chrono::seconds kReport{3}, kGrace{10};

// Blocks the signals the launcher waits for while it lives; children get the caller's mask back.
class SignalMask {
 public:
  SignalMask() {
    sigemptyset(&waited_);
    for (const int s : {SIGINT, SIGTERM, SIGHUP, SIGCHLD}) sigaddset(&waited_, s);
    pthread_sigmask(SIG_BLOCK, &waited_, &before_);
  }
  ~SignalMask() { restore(); }
  SignalMask(const SignalMask&) = delete;
  SignalMask& operator=(const SignalMask&) = delete;
  void restore() const { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  // The next of these signals; 0 after a while without one.
  int wait() const {
    const timespec while_{0, 200'000'000};
    return std::max(0, sigtimedwait(&waited_, nullptr, &while_));
  }

 private:
  sigset_t waited_{}, before_{};
};

struct Ranks {
  std::vector<pid_t> pids;  // 0: ended
  int alive() const {
    return static_cast<int>(std::count_if(pids.begin(), pids.end(), [](pid_t p) { return p > 0; }));
  }
  void send(int signal) const {
    for (const pid_t pid : pids)
      if (pid > 0) kill(pid, signal);
  }
};

using Variables = std::vector<std::pair<std::string, std::string>>;

Variables variables_of(int rank, int nproc, int port) {
  const auto text = [](int value) { return std::to_string(value); };
  Variables variables = {{"RANK", text(rank)},
                         {"WORLD_SIZE", text(nproc)},
                         {"LOCAL_RANK", text(rank)},
                         {"LOCAL_WORLD_SIZE", text(nproc)},
                         {"GROUP_RANK", "0"},
                         {"MASTER_ADDR", "127.0.0.1"},
                         {"MASTER_PORT", text(port)},
                         {"TORCHELASTIC_USE_AGENT_STORE", "True"},
                         {"TORCHELASTIC_RESTART_COUNT", "0"}};
  if (!process_environment("OMP_NUM_THREADS")) {
    const int cores = static_cast<int>(std::thread::hardware_concurrency());  // those this process may use
    variables.emplace_back("OMP_NUM_THREADS", text(std::max(1, cores / nproc)));
  }
  return variables;
}

pid_t start(const std::vector<char*>& arguments, const Variables& variables, const SignalMask& mask) {
  const pid_t launcher = getpid(), pid = fork();
  if (pid < 0) fail<Error>("cannot start a process: {}", std::strerror(errno));
  if (pid > 0) return pid;
  // In a process group of its own, so that Ctrl-C reaches it once (from the launcher), not twice.
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != launcher) _exit(1);  // the launcher died before prctl
  for (const auto& [name, value] : variables) setenv(name.c_str(), value.c_str(), 1);
  mask.restore();
  execv("/proc/self/exe", arguments.data());
  _exit(127);
}

int exit_code_of(int status) { return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status); }

// Takes every process that has ended; returns the exit code of the first failed one, or 0.
int reap(Ranks& ranks) {
  int failure = 0, status = 0;
  for (size_t rank = 0; rank < ranks.pids.size(); ++rank) {
    if (ranks.pids[rank] <= 0 || waitpid(ranks.pids[rank], &status, WNOHANG) <= 0) continue;
    ranks.pids[rank] = 0;
    const int code = exit_code_of(status);
    if (WIFSIGNALED(status))
      log::error("rank {} was ended by signal {} ({})", rank, WTERMSIG(status), strsignal(WTERMSIG(status)));
    if (code != 0 && failure == 0) failure = code;
  }
  return failure;
}

// Until all ranks have ended. Signals to the launcher go on to the ranks.
int supervise(Ranks& ranks, const SignalMask& mask) {
  int failure = 0;
  steady_clock::time_point failed_at;
  bool terminated = false, killed = false;
  while (ranks.alive() > 0) {
    const int signal = mask.wait();
    if (signal != 0 && signal != SIGCHLD) ranks.send(signal);
    const int code = reap(ranks);
    if (code != 0 && failure == 0) {
      failure = code;
      failed_at = steady_clock::now();
    }
    if (failure == 0) continue;
    const auto waited = steady_clock::now() - failed_at;
    if (!terminated && waited >= kReport) {
      ranks.send(SIGTERM);
      terminated = true;
    }
    if (!killed && waited >= kReport + kGrace) {
      ranks.send(SIGKILL);
      killed = true;
    }
  }
  return failure;
}

}  // namespace

int launch(int nproc, const std::vector<std::string>& arguments) {
  if (nproc < 1 || nproc > 1024) fail<ConfigError>("--nproc {} is outside [1, 1024]", nproc);
  if (const Place outer = find_place(process_environment, getppid()); outer.size > 1)
    fail<ConfigError>("--nproc {} inside a run of {} processes started by {}: drop --nproc, or unset its variables",
                      nproc, outer.size, outer.launcher);
  const SignalMask mask;  // before the store's thread starts, which inherits it
  int port = 0;
  const std::shared_ptr<void> store = serve_store(port);
  std::string program = std::filesystem::read_symlink("/proc/self/exe").string();
  std::vector<std::string> words = arguments;
  std::vector<char*> argv{program.data()};
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  Ranks ranks;
  try {
    for (int rank = 0; rank < nproc; ++rank) ranks.pids.push_back(start(argv, variables_of(rank, nproc, port), mask));
  } catch (const Error&) {
    ranks.send(SIGKILL);
    while (ranks.alive() > 0) {
      reap(ranks);
      mask.wait();
    }
    throw;
  }
  return supervise(ranks, mask);
}

}  // namespace fewstep::dist
