// What the files of src/dist share among themselves without seeing c10d.
#pragma once
#include <memory>
#include <string_view>

#include "src/dist/environment.h"
#include "src/dist/world.h"

namespace fewstep::dist {

std::unique_ptr<World> make_group_world(const Place& place, at::Device device, double timeout_seconds);

// A store server on a free port for launch(): the ranks are its clients, so it outlives them. Stops with the pointer.
std::shared_ptr<void> serve_store(int& port);

// The file named by TORCHELASTIC_ERROR_FILE, in the format torchrun's summary reads. Does nothing when it is unset,
// never throws.
void write_error_file(std::string_view message) noexcept;

}  // namespace fewstep::dist
