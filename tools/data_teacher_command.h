// fewstep data teacher: pictures that a model makes for the samples of a data set.
#pragma once

namespace CLI {
class App;
}

namespace fewstep {
void add_data_teacher_command(CLI::App* data);
}  // namespace fewstep
