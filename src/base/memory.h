// Memory of this process.
#pragma once
#include <cstdint>

namespace fewstep {

int64_t peak_memory();  // bytes: largest resident size since the start

}  // namespace fewstep
