// The program: one subcommand each in <name>_command.cpp, and the one place where errors become exit codes.
#include <c10/util/Exception.h>
#include <cxxabi.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <iostream>
#include <memory>
#include <new>
#include <string>
#include <system_error>
#include <typeinfo>
#include <vector>

#include "src/base/error.h"
#include "src/base/log.h"
#include "src/base/progress.h"
#include "src/base/signals.h"
#include "src/base/text.h"
#include "src/base/version.h"
#include "tools/commands.h"

namespace fewstep {
namespace {

constexpr int kUsage = 2, kData = 3;

std::string type_name(const std::exception& e) {
  int status = 0;
  const std::unique_ptr<char, decltype(&std::free)> name(
      abi::__cxa_demangle(typeid(e).name(), nullptr, nullptr, &status), &std::free);
  return status == 0 ? name.get() : typeid(e).name();
}

// One line, or the list of a config's problems as it is: an editor can jump to each file:line:column.
int report(const std::exception& e, const std::string& message, int code) {
  Progress::interrupt_line();
  const bool list = message.find('\n') != std::string::npos;
  std::cerr << (list ? "" : "fewstep: ") << message << "\n";
  if (list) std::cerr << fmt::format("fewstep: {} problems\n", std::count(message.begin(), message.end(), '\n') + 1);
  if (log::level() <= log::Level::debug)
    std::cerr << fmt::format("fewstep: thrown as {}, exit code {}\n", type_name(e), code);
  return code;
}

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

// Called inside a catch block.
int report_current_exception() {
  try {
    throw;
  } catch (const ExitWith& e) {
    return e.code;
  } catch (const ConfigError& e) {
    return report(e, e.what(), e.exit_code());
  } catch (const Error& e) {
    return report(e, e.what(), e.exit_code());
  } catch (const c10::Error& e) {
    const bool trace = log::level() <= log::Level::debug;
    return report(e, trace ? e.what() : first_line(e.what_without_backtrace()) + " (--log debug shows where)", 1);
  } catch (const std::filesystem::filesystem_error& e) {
    return report(e, fmt::format("{}: {}", e.path1().string(), e.code().message()), kData);
  } catch (const std::system_error& e) {
    return report(e, e.what(), kData);
  } catch (const std::bad_alloc& e) {
    return report(e, "out of memory: take a smaller batch, or fewer threads and processes", 1);
  } catch (const std::exception& e) {
    return report(e, first_line(e.what()), 1);
  } catch (...) {
    std::cerr << "fewstep: an error of unknown type\n";
    return 1;
  }
}

// CLI11 answers a mistyped subcommand with "A subcommand is required": say which word it was instead.
std::string usage_message(const CLI::App& app, const CLI::ParseError& e, const std::vector<std::string>& arguments) {
  const CLI::App* command = &app;
  if (std::string_view(e.what()).find("subcommand") == std::string_view::npos) return e.what();
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] == "--log")
      ++i;  // the one option with a value that stands before a subcommand
    else if (!arguments[i].starts_with("-")) {
      std::vector<std::string> known;
      const CLI::App* chosen = nullptr;
      for (const CLI::App* sub : command->get_subcommands(nullptr)) {
        known.push_back(sub->get_name());
        if (sub->get_name() == arguments[i]) chosen = sub;
      }
      if (known.empty()) break;
      if (!chosen) return fmt::format("unknown subcommand: {}", not_one_of(arguments[i], known));
      command = chosen;
    }
  }
  return e.what();
}

void add_commands(CLI::App& app) {
  add_train_command(app);
  add_sample_command(app);
  add_eval_command(app);
  add_experiment_command(app);
  add_data_command(app);
  add_export_command(app);
  add_model_command(app);
  add_config_command(app);
}

int run(int argc, char** argv) {
  CLI::App app("Trains, distils, samples and evaluates few-step image generators.", "fewstep");
  app.set_version_flag("--version", fmt::format("fewstep {} ({})", kVersion, build_commit()));
  app.set_help_all_flag("--help-all", "Help of every subcommand");
  app.add_option_function<std::string>(
         "--log", [](const std::string& name) { log::set_level(log::parse_level(name)); },
         "debug, info, warning or error: what is said on stderr")
      ->type_name("LEVEL")
      ->trigger_on_parse();
  app.require_subcommand(1);
  app.footer(
      "Examples:\n"
      "  fewstep train configs/quickstart/vq.yaml loop.steps=200\n"
      "  fewstep config explain\n"
      "`fewstep COMMAND --help` shows a command's arguments.\n"
      "Exit codes: 0 ok, 1 failed check or unexpected error, 2 config or usage, 3 file or data, 4 not a finite "
      "number,\n"
      "5 distributed, 130 interrupted (state saved).");
  add_commands(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() != static_cast<int>(CLI::ExitCodes::Success)) {
      std::string name = "fewstep";
      for (const CLI::App* at = &app; !at->get_subcommands().empty(); name += " " + at->get_name())
        at = at->get_subcommands()[0];
      std::cerr << fmt::format("fewstep: {}\nRun `{} --help` for the arguments.\n",
                               usage_message(app, e, {argv + 1, argv + argc}), name);
      return kUsage;
    }
    app.exit(e);  // --help, --version
    std::cout.flush();
  }
  // A full disk behind `> file` shows only here.
  if (std::fflush(stdout) != 0 || !std::cout)
    fail<DataError>("standard output cannot be written: {}", std::strerror(errno));
  return 0;
}

}  // namespace
}  // namespace fewstep

int main(int argc, char** argv) {
  fewstep::signals::install();
  try {
    return fewstep::run(argc, argv);
  } catch (...) {
    return fewstep::report_current_exception();
  }
}
