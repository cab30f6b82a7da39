// What an Error says when a call fails as it should.
#pragma once
#include <string>

#include "src/base/error.h"

namespace fewstep {

// The message of the E that `call` throws; "(no error)" when it throws none. Other exceptions go on.
template <class E = Error, class F>
std::string message_of(F&& call) {
  try {
    call();
  } catch (const E& e) {
    return e.what();
  }
  return "(no error)";
}

}  // namespace fewstep
