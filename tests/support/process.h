// Runs the program as a user does and keeps what it said.
#pragma once
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace fewstep::testing {

struct Finished {
  int code = -1;       // exit status, or 128 + signal
  std::string output;  // stdout and stderr together
};

// A child process whose output goes to a file in `folder`; started at construction.
class Child {
 public:
  Child(const std::vector<std::string>& arguments, const std::filesystem::path& folder,
        const std::vector<std::pair<std::string, std::string>>& environment = {})
      : log_(folder / ("output-" + std::to_string(counter()++))) {
    pid_ = fork();
    if (pid_ != 0) return;
    for (const auto& [key, value] : environment) setenv(key.c_str(), value.c_str(), 1);
    const std::string log = log_.string();
    if (!std::freopen(log.c_str(), "w", stdout)) _exit(127);
    dup2(STDOUT_FILENO, STDERR_FILENO);
    std::vector<char*> argv;
    for (const std::string& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
    argv.push_back(nullptr);
    execv(argv[0], argv.data());
    _exit(127);
  }
  void signal(int number) const { kill(pid_, number); }
  std::string output() const {
    std::ostringstream text;
    text << std::ifstream(log_).rdbuf();
    return text.str();
  }
  Finished wait() {
    int status = 0;
    waitpid(pid_, &status, 0);
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), output()};
  }
  // Polls until `done` holds or the child ends; false when it ended or a minute went by.
  bool wait_until(const std::function<bool()>& done) const {
    for (int i = 0; i < 6000; ++i) {
      if (done()) return true;
      int status = 0;
      if (waitpid(pid_, &status, WNOHANG | WNOWAIT) == pid_) return done();
      usleep(10000);
    }
    return false;
  }

 private:
  static int& counter() {
    static int n = 0;
    return n;
  }
  std::filesystem::path log_;
  pid_t pid_;
};

}  // namespace fewstep::testing
