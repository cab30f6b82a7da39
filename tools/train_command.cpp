// fewstep train CONFIG [key.path=value ...]
#include <CLI/CLI.hpp>

#include "eval/run_report.h"
#include "src/base/error.h"
#include "src/base/log.h"
#include "src/config/config.h"
#include "src/dist/world.h"
#include "tools/commands.h"
#include "tools/processes.h"
#include "trainers/loop.h"

namespace fewstep {
namespace {

struct TrainArguments {
  std::string config, run_dir, device;
  std::vector<std::string> overrides;
  bool resume = false;
  int nproc = 0;
};

std::vector<std::string> layered(const TrainArguments& a) {
  std::vector<std::string> overrides = a.overrides;
  if (!a.run_dir.empty()) overrides.push_back("run_dir=\"" + a.run_dir + "\"");
  if (!a.device.empty()) overrides.push_back("device=" + a.device);
  return overrides;
}

// The arguments of each process that --nproc starts: the same, without --nproc.
std::vector<std::string> child_arguments(const TrainArguments& a) {
  std::vector<std::string> arguments = {"train", a.config};
  arguments.insert(arguments.end(), a.overrides.begin(), a.overrides.end());
  if (a.resume) arguments.push_back("--resume");
  if (!a.run_dir.empty()) arguments.insert(arguments.end(), {"--run-dir", a.run_dir});
  if (!a.device.empty()) arguments.insert(arguments.end(), {"--device", a.device});
  return arguments;
}

void train(const TrainArguments& a) {
  auto run = config::load<RunConfig>(a.config, layered(a));
  if (a.nproc > 0) return start_processes(a.nproc, child_arguments(a));
  run_in_world(run.device, [&](dist::World& world) {
    const LoopResult result = run_training(run, world, a.resume);
    if (!world.is_main()) return;
    eval::write_run_report(run.folder());
    log::info("{}: {} steps done, report in {}", run.name, result.steps, (run.folder() / "report.html").string());
  });
}

}  // namespace

void add_train_command(CLI::App& app) {
  auto* command = app.add_subcommand("train", "train what CONFIG describes");
  auto a = std::make_shared<TrainArguments>();
  command->add_option("CONFIG", a->config, "YAML file of the run")->required();
  command->add_option("OVERRIDES", a->overrides, "key.path=value, over the file (see: fewstep config explain)");
  command->add_flag("--resume", a->resume, "continue from the newest whole checkpoint, bit for bit");
  command->add_option("--run-dir", a->run_dir, "folder of the run instead of runs/<name>");
  command->add_option("--device", a->device, "cpu or cuda instead of the file's")->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  command->add_option("--nproc", a->nproc, "start this many processes on this machine (torchrun, srun and mpirun work too)")
      ->check(CLI::PositiveNumber);
  command->footer("Examples:\n"
                  "  fewstep train configs/quickstart/vq.yaml\n"
                  "  fewstep train configs/quickstart/autoregressive.yaml loop.steps=200 trainer.optimizer.lr=1e-3 --resume\n"
                  "  fewstep train configs/quickstart/autoregressive.yaml --nproc 2\n"
                  "  torchrun --no-python --nproc-per-node 8 fewstep train CONFIG --resume");
  command->callback([a] { train(*a); });
}

}  // namespace fewstep
