// One function a subcommand, each in its own <name>_command.cpp: adds its arguments and a callback that runs it.
#pragma once
#include <vector>

namespace CLI {
class App;
}

namespace fewstep {

// Thrown by a command to end the process with this code when everything was already said (a failing rank's own message).
struct ExitWith {
  int code;
};

void add_train_command(CLI::App& app);
void add_sample_command(CLI::App& app);
void add_eval_command(CLI::App& app);
std::vector<CLI::App*> add_eval_pair_commands(CLI::App& eval_command);  // below `eval`
void add_experiment_command(CLI::App& app);
void add_data_command(CLI::App& app);
void add_export_command(CLI::App& app);
void add_model_command(CLI::App& app);
void add_config_command(CLI::App& app);

}  // namespace fewstep
