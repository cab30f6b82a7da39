#include "src/base/signals.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>

namespace fewstep::signals {
namespace {

// Lock-free atomics: allowed in a handler, and read by any thread.
std::atomic<int> g_stop{0};
std::atomic<int> g_interrupts{0};
static_assert(std::atomic<int>::is_always_lock_free);

void handle(int signal) {
  g_stop = 1;
  if (signal == SIGINT && ++g_interrupts > 1) ::_exit(130);
}

}  // namespace

void install() {
  struct sigaction action {};
  action.sa_handler = handle;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;  // reads and writes in flight go on; the loop looks at stop_requested() between steps
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
  // A file beyond `ulimit -f` shall be a DataError that leaves the last checkpoint whole, not a killed process.
  ::signal(SIGXFSZ, SIG_IGN);
}

bool stop_requested() { return g_stop != 0; }
void request_stop() { g_stop = 1; }
void clear() { g_stop = g_interrupts = 0; }

}  // namespace fewstep::signals
