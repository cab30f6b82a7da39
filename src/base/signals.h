// SIGINT and SIGTERM ask for an orderly stop; a second SIGINT ends the process at once.
#pragma once

namespace fewstep::signals {

void install();              // once, in main
bool stop_requested();
void request_stop();         // as a signal would (tests, time limits)
void clear();                // tests

}  // namespace fewstep::signals
