#pragma once

namespace CLI {
class App;
}

namespace fewstep {

void add_data_cache_command(CLI::App* data);  // below `data`

}  // namespace fewstep
